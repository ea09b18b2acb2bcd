"""Lines that an app's runners wrote: the last ones, those after a cursor, and new ones."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from typing import Any

from fal_notebook.exceptions import NotFoundError, OptionError
from fal_notebook.gateway import clock, paths
from fal_notebook.gateway.gateway import Gateway
from fal_notebook.gateway.logs.cursor import Cursor
from fal_notebook.gateway.logs.lines import Line, Wanted, has_part, parse
from fal_notebook.gateway.logs.of_request import SLACK
from fal_notebook.gateway.logs.pieces import last_lines
from fal_notebook.gateway.logs.reader import LogReader
from fal_notebook.gateway.logs.redaction import Redact
from fal_notebook.gateway.operations.apps import check_deployed, past_runners
from fal_notebook.gateway.store import RunnerRow
from fal_notebook.runner.log_file import LogFile

# A follower looks for new lines this often.
FOLLOW_PERIOD = 0.2
# It is sent so many lines at a time.
BATCH = 5000


@dataclass(frozen=True)
class Query:
    """What somebody wants to read.

    `cursor` None asks for the last `tail` lines, else for `limit` lines after it; "" is the
    oldest line that is kept.
    """

    wanted: Wanted
    tail: int = 200
    cursor: str | None = None
    limit: int = 1000

    def __post_init__(self) -> None:
        if self.tail < 0:
            raise OptionError(f"tail={self.tail} is not allowed; it is a number of lines from 0 on")


async def read(gateway: Gateway, owner: str, name: str, query: Query) -> dict[str, Any]:
    """Return ``lines``, the ``cursor`` behind them, and whether there is ``more`` by now.

    Lines have at, level, runner, request, message, oldest first. Those that were written past
    Python's sys.stdout have neither time nor request. A cursor is good for the same filters, over
    restarts of the gateway; one whose lines are gone goes on with the oldest that are kept.
    """
    check_deployed(gateway, owner, name)
    reader, rows = _begin(gateway, owner, name, query)
    redact = gateway.redaction.current()
    lines = await asyncio.to_thread(_page, reader, rows, query, redact)
    return {"lines": lines, "cursor": reader.cursor.dump(), "more": reader.more}


def follow(gateway: Gateway, owner: str, name: str, query: Query) -> AsyncIterator[bytes]:
    """Return lines as server-sent events, then new ones as they are written.

    The id of each is the cursor behind it. ``event: end`` says that there will be no more: the app
    was deleted, or the queued request is completed whose lines are wanted. Without it the gateway
    stops, and the next one goes on where this one ended.
    """
    check_deployed(gateway, owner, name)
    reader, rows = _begin(gateway, owner, name, query)
    return _follow(gateway, owner, name, query, reader, rows)


async def _follow(
    gateway: Gateway,
    owner: str,
    name: str,
    query: Query,
    reader: LogReader,
    rows: Sequence[RunnerRow],
) -> AsyncIterator[bytes]:
    if query.cursor is None:
        await asyncio.to_thread(reader.go_back, rows, query.tail)
    yield _event(reader)
    while not gateway.stop_requested.is_set():
        events = b""
        if reader.behind(rows):
            redact = gateway.redaction.current()
            events = await asyncio.to_thread(_events, reader, rows, redact)
        yield events
        over = not events and _is_completed(gateway, query.wanted.request)
        if over or not gateway.store.has_revisions(owner, name):
            yield b"event: end\ndata: {}\n\n"
            return
        if not events:
            await asyncio.sleep(FOLLOW_PERIOD)
        rows = past_runners(gateway, owner, name, reader.cursor.since)


def _is_completed(gateway: Gateway, request_id: str) -> bool:
    """Say whether a request of the queue is completed, for so long that all its lines are there."""
    request = gateway.queue.records.find(request_id) if request_id else None
    at = request.completed_at if request is not None else None
    return at is not None and clock.now() - at > SLACK


def log_tail(gateway: Gateway, row: RunnerRow, lines: int) -> list[str]:
    """Return the last lines of a runner's log as plain text."""
    log = LogFile.of(paths.runner_log(gateway.state, row.id), row.secret)
    redact = gateway.redaction.current()
    found, _ = last_lines(log, True, lines, lambda raw: True)
    return [redact(parse(raw.text, log.mark)["message"]) for raw in found]


def without_repeats(lines: list[str]) -> list[str]:
    """Return a log with each of its tracebacks once; the end of one that is cut is one too."""
    begin = [n for n, line in enumerate(lines) if line.startswith("Traceback (")]
    cut, *blocks = (tuple(lines[a:b]) for a, b in pairwise([0, *begin, len(lines)]))
    different = list(dict.fromkeys(blocks))
    repeats = any(block[-len(cut) :] == cut for block in different)
    return list(chain(() if repeats else cut, *different))


def _begin(
    gateway: Gateway, owner: str, name: str, query: Query
) -> tuple[LogReader, list[RunnerRow]]:
    cursor = Cursor.load(query.cursor or "")
    rows = past_runners(gateway, owner, name, cursor.since)
    wanted = query.wanted
    if part := wanted.runner:
        found = {row.id for row in rows if has_part(row.id, part)}
        if not found and query.cursor is None:
            known = "each line of its log begins with one"
            raise NotFoundError(f"{owner}/{name} has no runner {part}; {known}")
        if len(found) > 1 and part not in found:
            raise OptionError(f"{part} is a part of several runners' ids; write more of one")
        wanted = replace(wanted, runner=part if part in found or not found else found.pop())
    return LogReader(gateway.state, wanted, cursor), rows


def _page(reader: LogReader, rows: Sequence[RunnerRow], query: Query, redact: Redact) -> list[Line]:
    if query.cursor is not None:
        return list(reader.lines(rows, query.limit, redact))
    reader.go_back(rows, query.tail)
    most = query.tail + BATCH  # some may have come meanwhile
    lines = list(reader.lines(rows, most, redact))
    while reader.more and len(lines) < most:
        lines += reader.lines(rows, most - len(lines), redact)
    return lines[max(0, len(lines) - query.tail) :]


def _events(reader: LogReader, rows: Sequence[RunnerRow], redact: Redact) -> bytes:
    return b"".join(_event(reader, line) for line in reader.lines(rows, BATCH, redact))


def _event(reader: LogReader, line: Line | None = None) -> bytes:
    told = f"event: log\ndata: {json.dumps(line)}\n" if line is not None else ""
    return f"id: {reader.cursor.dump()}\n{told}\n".encode()
