"""What a runner prints while it starts, told to who follows the deploy that it proves."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from fal_notebook.gateway.fleet import Runner
from fal_notebook.gateway.gateway import Gateway
from fal_notebook.gateway.operations.logs import log_tail
from fal_notebook.gateway.store import Revision

# How often its log is looked at (seconds), and how many of its last lines are told.
PERIOD = 1.0
LINES = 10
# Of each line as many characters.
WIDTH = 200


async def ready(gateway: Gateway, revision: Revision, runner: Runner) -> None:
    """Wait until a runner is ready; raises what its `ready` does."""
    telling = asyncio.create_task(_tell(gateway, revision, runner))
    try:
        await runner.ready
    finally:
        telling.cancel()


async def _tell(gateway: Gateway, revision: Revision, runner: Runner) -> None:
    told: list[str] = []
    while True:
        await asyncio.sleep(PERIOD)
        lines: list[str] = []
        with suppress(OSError):  # it has written nothing yet
            lines = log_tail(gateway, runner.row, LINES)
        if lines and lines != told:
            told = lines
            shown = [line[:WIDTH] for line in lines]
            data = {"revision": revision.id, "message": shown[-1], "part": None, "log": shown}
            gateway.events.detail(revision.owner, revision.app, data)
