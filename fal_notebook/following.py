"""Following log lines over restarts of the gateway: it goes on behind the last line that came."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, NamedTuple

from fal_notebook import discovery, settings
from fal_notebook.exceptions import GatewayUnavailableError, NotFoundError
from fal_notebook.patience import Patience


class Event(NamedTuple):
    """A server-sent event; the first of a stream has an id only."""

    id: str
    kind: str
    data: Any


async def events(lines: AsyncIterator[str]) -> AsyncGenerator[Event, None]:
    """Yield the events of a stream's lines."""
    fields: dict[str, str] = {}
    async for line in lines:
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif fields:
            data = json.loads(fields.get("data", "null"))
            yield Event(fields.get("id", ""), fields.get("event", ""), data)
            fields = {}


async def follow(
    connect: Callable[[str], AsyncGenerator[Event, None]],
) -> AsyncIterator[dict[str, Any]]:
    """Yield lines until the app is deleted.

    Parameters
    ----------
    connect : callable
        Opens the stream behind the event with this id.

    Raises
    ------
    GatewayUnavailableError
        When the gateway went away and nobody started another: following starts none.
    """
    last, patience = "", Patience()
    while True:
        lost = GatewayUnavailableError("the gateway has stopped; the next call starts it again")
        try:
            async with contextlib.aclosing(connect(last)) as stream:
                async for event in stream:
                    patience.found()
                    last = event.id or last
                    if event.kind == "end":
                        return
                    if event.kind == "log":
                        yield event.data
        except (GatewayUnavailableError, NotFoundError) as error:
            if not last:
                raise
            if isinstance(error, NotFoundError):
                return  # deleted while nobody was connected
            lost = error
        await patience.lost(lost)
        while not await asyncio.to_thread(_is_back):
            await patience.lost(lost)


def _is_back() -> bool:
    """Say whether a gateway runs; that of a runner is asked itself."""
    return "FAL_RUNNER_ID" in os.environ or discovery.find(settings.state_folder()) is not None
