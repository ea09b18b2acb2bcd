"""Output of the user's code as lines that name their request, also when several run at once."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import threading
import time
from typing import Any

from fal_notebook.runner import log_context, log_file, log_levels
from fal_notebook.runner.secret_forms import Redact

# A longer line is written in pieces, so that one without an end does not fill the memory.
LONGEST = 32 * 1024

# After so many bytes a writer looks whether its file has become too big.
_LOOK = 1024 * 1024


class LineWriter(io.TextIOBase):
    """A text stream that writes each finished line as one JSON record in one atomic append.

    Unfinished lines are kept per request and thread, so that what runs at once does not mix.
    """

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, descriptor: int, level: str, mark: bytes, redact: Redact = str) -> None:
        self._mark = mark
        self._redact = redact
        self._descriptor = descriptor
        self._level = level
        self._pending: dict[tuple[str | None, int], str] = {}
        self._unseen = 0

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
        key = log_context.current(), threading.get_ident()
        *lines, rest = (self._pending.pop(key, "") + text).split("\n")
        for line in lines:
            self._record(key[0], line)
        rest = self._redact(rest) if len(rest) >= LONGEST else rest  # no cut goes through a secret
        whole = len(rest) - len(rest) % LONGEST
        for start in range(0, whole, LONGEST):
            self._record(key[0], rest[start : start + LONGEST])
        if whole < len(rest):
            self._pending[key] = rest[whole:]
        return len(text)

    def finish(self, request: str | None) -> None:
        """Write what `request` left without a newline."""
        for key in [key for key in list(self._pending) if key[0] == request]:
            rest = self._pending.pop(key, "")
            if rest:
                self._record(request, rest)

    def _record(self, request: str | None, line: str) -> None:
        """Append one line; of what a progress bar overwrote, only the last state."""
        message = self._redact(line.rstrip("\r").rpartition("\r")[2])
        level = log_levels.level_of(self._level)
        for start in range(0, max(1, len(message)), LONGEST):
            record = {
                "at": time.time(),
                "level": level,
                "request": request,
                "message": message[start : start + LONGEST],
            }
            self._append(self._mark + json.dumps(record).encode() + b"\n")

    def _append(self, data: bytes) -> None:
        # A line that is lost, to a full disk say, must not fail what the user's code does.
        with contextlib.suppress(OSError):
            os.write(self._descriptor, data)
        self._unseen += len(data)
        if self._unseen > _LOOK:
            self._unseen = 0
            log_file.bound(self._descriptor)


def redirect(path: str, mark: bytes, redact: Redact = str) -> None:
    """Send descriptors 1 and 2 to the log file and sys.stdout, sys.stderr through line writers.

    Their records begin with `mark`.

    Without a path it stays where descriptor 1 goes: in a container, to the engine.

    These write nothing that `redact` takes out; what comes past them is redacted when it is read.
    """
    if path:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(descriptor, 1)
        os.close(descriptor)
    os.dup2(1, 2)
    streams: Any = sys  # typeshed knows them as constants
    streams.stdout = streams.__stdout__ = LineWriter(1, "INFO", mark, redact)
    streams.stderr = streams.__stderr__ = LineWriter(2, "ERROR", mark, redact)
    _writers[:] = streams.stdout, streams.stderr
    log_levels.install()
    log_context.install()


_writers: list[LineWriter] = []


def begin(request: str | None) -> None:
    """Name the request for which the present task, and what it starts, works from now on."""
    log_context.begin(request)


def finish(request: str | None) -> None:
    """Write unfinished lines of a request; None: of what runs outside of one."""
    for writer in _writers:
        writer.finish(request)


def end(request: str | None) -> None:
    """Write what a request left unfinished; threads that it leaves behind lose its name."""
    finish(request)
    log_context.end(request)
