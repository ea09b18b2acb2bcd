"""Lines that an app's runners wrote: the last ones, of one runner or request, then followed."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from fal_notebook.gateway import paths
from fal_notebook.gateway.gateway import Gateway
from fal_notebook.gateway.operations.apps import find, past_runners
from fal_notebook.gateway.queue.table import QueuedRequest
from fal_notebook.gateway.store import RunnerRow
from fal_notebook.runner.logs import RECORD

# A follower looks for new lines this often.
FOLLOW_PERIOD = 0.2
# A runner that ended longer ago than this (seconds) writes nothing that a follower has not seen.
FRESH = 60.0
# At most this much of a log is read at a time; a longer line is cut into pieces.
READ_AT_MOST = 4 * 1024 * 1024

Line = tuple[float, dict[str, Any]]


async def read(
    gateway: Gateway, owner: str, name: str, runner: str = "", request: str = "", tail: int = 200
) -> list[dict[str, Any]]:
    """Return the last `tail` lines, oldest first: at, level, runner, request, message.

    Lines that were written past Python's sys.stdout have neither time nor request.
    """
    find(gateway, owner, name)
    return await LogReader(gateway.state, runner, request).last(
        past_runners(gateway, owner, name), tail
    )


async def of_request(gateway: Gateway, request: QueuedRequest) -> list[dict[str, Any]]:
    """Return the lines that a queued request wrote, oldest first."""
    runners = gateway.store.select(RunnerRow, "id = ?", request.runner)
    return await LogReader(gateway.state, "", request.id).last(runners, 1000)


async def follow(
    gateway: Gateway, owner: str, name: str, runner: str = "", request: str = "", tail: int = 200
) -> AsyncIterator[bytes]:
    """Yield the last lines as server-sent events, then new ones as they are written.

    It ends when the gateway stops or the app is deleted.
    """
    reader = LogReader(gateway.state, runner, request)
    lines = await reader.last(past_runners(gateway, owner, name), tail)
    while not gateway.stop_requested.is_set():
        for line in lines:
            yield f"event: log\ndata: {json.dumps(line)}\n\n".encode()
        if gateway.store.app(owner, name) is None:
            return
        await asyncio.sleep(FOLLOW_PERIOD)
        lines = await reader.new(past_runners(gateway, owner, name, time.time() - FRESH))


def log_tail(path: Path, lines: int) -> list[str]:
    """Return the last lines of a runner's log as plain text."""
    if not path.is_file():
        return []
    # Not splitlines: it would split at RECORD too.
    text = path.read_text(errors="replace").rstrip("\n").split("\n")[-lines:]
    return [json.loads(x[1:])["message"] if x.startswith(RECORD) else x for x in text]


class LogReader:
    """Reads log files in a thread, from where it stopped before."""

    def __init__(self, state: Path, runner: str, request: str) -> None:
        self._state = state
        self._runner = runner
        self._request = request
        self._offsets: dict[str, int] = {}
        self._done: set[str] = set()

    async def last(self, runners: Sequence[RunnerRow], tail: int) -> list[dict[str, Any]]:
        """Return the last lines, oldest first; what comes after them is new."""
        return await asyncio.to_thread(self._last, runners, tail)

    async def new(self, runners: Sequence[RunnerRow]) -> list[dict[str, Any]]:
        """Return lines not returned before, in the order of time."""
        runners = [row for row in runners if row.id not in self._done]
        return await asyncio.to_thread(self._new, runners) if runners else []

    def _last(self, runners: Sequence[RunnerRow], tail: int) -> list[dict[str, Any]]:
        lines: list[Line] = []
        for row in runners:
            if row.ended_at is not None and len(lines) == tail and row.ended_at < _oldest(lines):
                self._done.add(row.id)  # every line of it is older
                continue
            lines = sorted(lines + self._of_runner(row), key=_time)
            lines = lines[max(0, len(lines) - tail) :]
        return [line for _, line in lines]

    def _new(self, runners: Sequence[RunnerRow]) -> list[dict[str, Any]]:
        lines = [line for row in runners for line in self._of_runner(row)]
        return [line for _, line in sorted(lines, key=_time)]

    def _of_runner(self, row: RunnerRow) -> list[Line]:
        if self._runner not in ("", row.id):
            return []
        found, at = [], row.created_at
        for text in self._complete_lines(row):
            line = parse(text, row.id)
            at = line["at"] or at
            if self._request in ("", line["request"]):
                found.append((at, line))
        return found

    def _complete_lines(self, row: RunnerRow) -> list[str]:
        """Return whole lines from where the last look ended, first near the end of the file."""
        path = paths.runner_log(self._state, row.id)
        if not path.is_file():
            return []
        with path.open("rb") as file:
            size = file.seek(0, 2)
            start = self._offsets.get(row.id)
            skip_part = start is None and size > READ_AT_MOST
            file.seek(max(0, size - READ_AT_MOST) if start is None else start)
            data = file.read(READ_AT_MOST)
            at_end = file.tell() == size
        end = data.rfind(b"\n") + 1
        if row.ended_at is not None and at_end:
            self._done.add(row.id)
            end = len(data)  # nobody will finish the last line
        elif not end and len(data) == READ_AT_MOST:
            end = len(data)
        self._offsets[row.id] = size - len(data) + end if start is None else start + end
        lines = data[:end].removesuffix(b"\n").split(b"\n") if end else []
        # Not splitlines: it would split at RECORD too.
        return [line.decode(errors="replace") for line in lines[skip_part and len(lines) > 1 :]]


def parse(text: str, runner: str) -> dict[str, Any]:
    """Return one line of a log file as data; what only looks like a record is text."""
    plain = {"at": None, "level": "INFO", "runner": runner, "request": None, "message": text}
    if not text.startswith(RECORD):
        return plain
    try:
        record = json.loads(text[1:])
        return {
            "at": float(record["at"]),
            "level": str(record["level"]),
            "runner": runner,
            "request": record["request"],
            "message": str(record["message"]),
        }
    except (ValueError, TypeError, KeyError):
        return {**plain, "message": text[1:]}


def _time(line: Line) -> float:
    return line[0]


def _oldest(lines: list[Line]) -> float:
    return lines[0][0] if lines else float("inf")
