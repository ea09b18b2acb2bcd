"""Lines that an app's runners wrote: the last ones, of one runner or request, then followed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fal_notebook.gateway import paths
from fal_notebook.gateway.gateway import Gateway
from fal_notebook.gateway.operations.apps import find, past_runners
from fal_notebook.runner.logs import RECORD

# A follower looks for new lines this often.
FOLLOW_PERIOD = 0.2
# Of each runner's log, at most this much of the end is read.
READ_AT_MOST = 4 * 1024 * 1024


def read(
    gateway: Gateway, owner: str, name: str, runner: str = "", request: str = "", tail: int = 200
) -> list[dict[str, Any]]:
    """Return the last `tail` lines, oldest first: at, level, runner, request, message.

    Lines that were written past Python's sys.stdout have neither time nor request.
    """
    return [line for line, _ in _Reader(gateway, owner, name, runner, request).new()][-tail:]


async def follow(
    gateway: Gateway, owner: str, name: str, runner: str = "", request: str = "", tail: int = 200
) -> AsyncIterator[bytes]:
    """Yield the last lines as server-sent events, then new ones as they are written."""
    reader = _Reader(gateway, owner, name, runner, request)
    lines = reader.new()[-tail:]
    while not gateway.stop_requested.is_set():
        for line, _ in lines:
            yield f"event: log\ndata: {json.dumps(line)}\n\n".encode()
        await asyncio.sleep(FOLLOW_PERIOD)
        lines = reader.new()


class _Reader:
    """Reads the logs of an app's runners from where it stopped before."""

    def __init__(self, gateway: Gateway, owner: str, name: str, runner: str, request: str) -> None:
        find(gateway, owner, name)
        self._gateway = gateway
        self._app = owner, name
        self._runner = runner
        self._request = request
        self._offsets: dict[str, int] = {}

    def new(self) -> list[tuple[dict[str, Any], float]]:
        """Return lines not returned before, in the order of time, each with its time."""
        rows = past_runners(self._gateway, *self._app)
        lines: list[tuple[dict[str, Any], float]] = []
        for row in rows:
            if self._runner in ("", row.id):
                lines += self._of_runner(row.id, row.created_at)
        return sorted(lines, key=lambda item: item[1])

    def _of_runner(self, runner: str, at: float) -> list[tuple[dict[str, Any], float]]:
        path = paths.runner_log(self._gateway.state, runner)
        found = []
        for text in self._complete_lines(path, runner):
            line = parse(text, runner)
            at = line["at"] or at
            if self._request in ("", line["request"]):
                found.append((line, at))
        return found

    def _complete_lines(self, path: Path, runner: str) -> list[str]:
        if not path.is_file():
            return []
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(self._offsets.get(runner, max(0, size - READ_AT_MOST)))
            data = file.read(READ_AT_MOST)
            end = data.rfind(b"\n") + 1
            self._offsets[runner] = file.tell() - len(data) + end
        # Not splitlines: it would split at RECORD too.
        return data[:end].decode(errors="replace").split("\n")[:-1]


def parse(text: str, runner: str) -> dict[str, Any]:
    """Return one line of a log file as data."""
    if text.startswith(RECORD):
        try:
            return {**json.loads(text[1:]), "runner": runner}
        except ValueError:
            text = text[1:]
    return {"at": None, "level": "INFO", "runner": runner, "request": None, "message": text}
