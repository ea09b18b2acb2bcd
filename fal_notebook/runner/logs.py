"""Output of the user's code as lines that name their request, also when several run at once."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import threading
import time
from contextvars import ContextVar
from typing import Any

request_id: ContextVar[str | None] = ContextVar("fal_request_id", default=None)

# A line that starts with this byte is one of ours; any other was written past Python's sys.stdout.
RECORD = "\x1e"

# A longer line is written in pieces, so that one without an end does not fill the memory.
LONGEST = 32 * 1024


class LineWriter(io.TextIOBase):
    """A text stream that writes each finished line as one JSON record in one atomic append.

    Unfinished lines are kept per request and thread, so that what runs at once does not mix.
    """

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, descriptor: int, level: str) -> None:
        self._descriptor = descriptor
        self._level = level
        self._pending: dict[tuple[str | None, int], str] = {}

    @property
    def buffer(self) -> io.FileIO:
        """The bytes below, for code that writes them; they name no request."""
        return io.FileIO(self._descriptor, "w", closefd=False)

    def writable(self) -> bool:
        """Return True."""
        return True

    def fileno(self) -> int:
        """Return the descriptor below, for code that writes to it directly."""
        return self._descriptor

    def close(self) -> None:
        """Stay open: the next request needs it."""

    def write(self, text: str) -> int:
        """Write every line that `text` completes; keep the rest until its newline comes."""
        key = request_id.get(), threading.get_ident()
        *lines, rest = (self._pending.pop(key, "") + text).split("\n")
        for line in lines:
            self._record(key[0], line)
        while len(rest) >= LONGEST:
            self._record(key[0], rest[:LONGEST])
            rest = rest[LONGEST:]
        if rest:
            self._pending[key] = rest
        return len(text)

    def finish(self, request: str | None) -> None:
        """Write what `request` left without a newline."""
        for key in [key for key in list(self._pending) if key[0] == request]:
            rest = self._pending.pop(key, "")
            if rest:
                self._record(request, rest)

    def _record(self, request: str | None, line: str) -> None:
        """Append one line; of what a progress bar overwrote, only the last state."""
        message = line.rstrip("\r").rpartition("\r")[2]
        for start in range(0, max(1, len(message)), LONGEST):
            record = {
                "at": time.time(),
                "level": self._level,
                "request": request,
                "message": message[start : start + LONGEST],
            }
            # A line that is lost, to a full disk say, must not fail what the user's code does.
            with contextlib.suppress(OSError):
                os.write(self._descriptor, (RECORD + json.dumps(record) + "\n").encode())


def redirect(path: str) -> None:
    """Send descriptors 1 and 2 to the log file and sys.stdout, sys.stderr through line writers."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    streams: Any = sys  # typeshed knows them as constants
    streams.stdout = streams.__stdout__ = LineWriter(1, "INFO")
    streams.stderr = streams.__stderr__ = LineWriter(2, "ERROR")
    _writers[:] = streams.stdout, streams.stderr


_writers: list[LineWriter] = []


def finish(request: str | None) -> None:
    """Write unfinished lines of a request that has ended; None: of what runs outside of one."""
    for writer in _writers:
        writer.finish(request)
