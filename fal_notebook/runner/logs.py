"""Output of the user's code as lines that name their request, also when several run at once."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from contextvars import ContextVar

request_id: ContextVar[str | None] = ContextVar("fal_request_id", default=None)

# A line that starts with this byte is one of ours; any other was written past Python's sys.stdout.
RECORD = "\x1e"


class LineWriter(io.TextIOBase):
    """A text stream that writes each finished line as one JSON record in one atomic append.

    Unfinished lines are kept per request, so that requests that print at once do not mix.
    """

    def __init__(self, descriptor: int, level: str) -> None:
        self._descriptor = descriptor
        self._level = level
        self._pending: dict[str | None, str] = {}

    def writable(self) -> bool:
        """Return True."""
        return True

    def fileno(self) -> int:
        """Return the descriptor below, for code that writes to it directly."""
        return self._descriptor

    def write(self, text: str) -> int:
        """Write every line that `text` completes; keep the rest until its newline comes."""
        request = request_id.get()
        *lines, rest = (self._pending.pop(request, "") + text).split("\n")
        for line in lines:
            self._record(request, line)
        if rest:
            self._pending[request] = rest
        return len(text)

    def finish(self, request: str | None) -> None:
        """Write what `request` left without a newline."""
        rest = self._pending.pop(request, "")
        if rest:
            self._record(request, rest)

    def _record(self, request: str | None, message: str) -> None:
        record = {"at": time.time(), "level": self._level, "request": request, "message": message}
        os.write(self._descriptor, (RECORD + json.dumps(record) + "\n").encode())


def redirect(path: str) -> None:
    """Send descriptors 1 and 2 to the log file and sys.stdout, sys.stderr through line writers."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    sys.stdout = LineWriter(1, "INFO")
    sys.stderr = LineWriter(2, "ERROR")


def finish(request: str | None) -> None:
    """Write unfinished lines of a request that has ended."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, LineWriter):
            stream.finish(request)
