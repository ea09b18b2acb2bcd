"""Keeps logs within their share of the disk: each one, also when its runner cannot, and all."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

from fal_notebook.exceptions import FalNotebookError
from fal_notebook.gateway import paths
from fal_notebook.gateway.store import Store
from fal_notebook.runner.log_file import bound_path, disk_space

# Logs of runners that live are looked at so often (seconds).
PERIOD = 1.0
# All logs together are looked at so often (seconds).
PERIOD_OF_ALL = 10.0
# All logs together take about this much (bytes; setting logs_max_bytes).
MOST_OF_ALL = 1024**3

_LOG = logging.getLogger(__name__)


async def watch(
    state: Path, live: Callable[[], Iterable[str]], scrub: Callable[[str], Awaitable[None]]
) -> None:
    """Bound the logs of runners that live, and have secrets scrubbed from them, for ever.

    What Python code prints is bounded by the runner itself, while it prints. This is for output
    past Python, such as of C code and child processes: there a log can grow beyond its bound by
    what is written within `PERIOD`.

    Parameters
    ----------
    live : callable
        Gives the ids of the runners.
    scrub : callable
        Masks secrets in what is new of a runner's log.
    """
    folder = paths.logs_folder(state)
    while True:
        for runner in list(live()):
            try:
                bound_path(paths.log_in(folder, runner))
                await scrub(runner)
            except (OSError, FalNotebookError):
                _LOG.exception("the log of runner %s was not bounded or scrubbed", runner)
        await asyncio.sleep(PERIOD)


async def watch_all(state: Path, store: Store, most: int) -> None:
    """Trim logs whenever all of them take more than `most` bytes, for ever."""
    while True:
        if await asyncio.to_thread(_size, paths.logs_folder(state)) > most:
            await asyncio.to_thread(trim, state, store.ended_runners(), most)
        await asyncio.sleep(PERIOD_OF_ALL)


def _size(folder: Path) -> int:
    total = 0
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            total += disk_space(path.stat())
    return total


def trim(state: Path, runners: Iterable[tuple[str, bool]], most: int) -> None:
    """Remove logs of runners that have ended: of deleted apps all, else the oldest above `most`."""
    folder = paths.logs_folder(state)
    used = {path.stem: disk_space(path.stat()) for path in folder.iterdir()}
    total = sum(used.values())
    for runner, shown in runners:
        if runner in used and (total > most or not shown):
            paths.log_in(folder, runner).unlink(missing_ok=True)
            total -= used[runner]
