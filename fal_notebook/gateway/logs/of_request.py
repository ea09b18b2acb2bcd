"""The lines of queued requests, for callers who ask again and again while one is at work."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

from fal_notebook.gateway.logs.lines import Line, Wanted
from fal_notebook.gateway.logs.reader import LogReader
from fal_notebook.gateway.logs.redaction import Redact, Redaction
from fal_notebook.gateway.queue.table import QueuedRequest
from fal_notebook.gateway.store import RunnerRow, Store

# So many of its last lines are told of a request, of long ones as many as have so many characters:
# fal's clients ask ten times in a second.
MOST_LINES = 1000
MOST_CHARACTERS = 1_000_000
# What was found is remembered for so many requests, so that only new lines are read.
REMEMBERED = 64
# Clocks of two processes may differ by this much (seconds), and a line may come after the answer.
SLACK = 2.0


@dataclass
class _Found:
    reader: LogReader
    lines: deque[Line] = field(default_factory=lambda: deque(maxlen=MOST_LINES))
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class RequestLogs:
    """Finds the lines of a request; asking for them again reads only what is new."""

    def __init__(self, state: Path, store: Store, redaction: Redaction) -> None:
        self._state = state
        self._redaction = redaction
        self._store = store
        self._found: OrderedDict[str, _Found] = OrderedDict()

    async def of(self, request: QueuedRequest) -> list[Line]:
        """Return the last lines that a request wrote, in all its attempts, oldest first."""
        if request.started_at is None:
            return []
        rows = self._runners(request)
        found = self._remembered(request)
        async with found.lock:
            if found.reader.behind(rows):
                await asyncio.to_thread(_read_on, found, rows, self._redaction.current())
        return _fitting(found.lines)

    def _remembered(self, request: QueuedRequest) -> _Found:
        key = f"{request.id} {request.state} {request.attempts}"
        found = self._found.pop(key, None)
        if found is None:
            reader = LogReader(self._state, Wanted(request=request.id), None, _between(request))
            found = _Found(reader)
        self._found[key] = found
        while len(self._found) > REMEMBERED:
            self._found.popitem(last=False)
        return found

    def _runners(self, request: QueuedRequest) -> list[RunnerRow]:
        """Return the runner of the only attempt, or all that lived while it was tried."""
        if request.attempts <= 1:
            return self._store.select(RunnerRow, "id = ?", request.runner)
        begin, end = _between(request)
        where = "owner = ? AND app = ? AND COALESCE(ended_at, 1e12) >= ? AND created_at <= ?"
        return self._store.select(RunnerRow, where, request.owner, request.app, begin, end)


def _between(request: QueuedRequest) -> tuple[float, float]:
    """Return the time within which it wrote: since it began, or since it was accepted."""
    begin = request.number / 1e6 if request.attempts > 1 else request.started_at or 0.0
    return begin - SLACK, (request.completed_at or float("inf")) + SLACK


def _read_on(found: _Found, rows: list[RunnerRow], redact: Redact) -> None:
    found.lines.extend(found.reader.lines(rows, MOST_LINES, redact))
    while found.reader.more:
        found.lines.extend(found.reader.lines(rows, MOST_LINES, redact))


def _fitting(lines: deque[Line]) -> list[Line]:
    """Return the last lines that are not too much together, the last one in any case."""
    lengths = accumulate(len(line["message"]) for line in reversed(lines))
    count = sum(1 for length in lengths if length <= MOST_CHARACTERS)
    return list(lines)[-max(1, count) :]
