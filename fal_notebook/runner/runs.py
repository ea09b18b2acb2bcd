"""What is at work in threads, which cannot be stopped: who asks for the same again joins in.

A gateway that was killed leaves the queue's requests at work; the next one sends them again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from starlette.responses import Response
from starlette.types import Receive

from fal_notebook.runner.link import disconnected


class Run(NamedTuple):
    """A request: its id and path, its body, and what hears of its caller."""

    key: tuple[str, str]
    body: bytes
    receive: Receive


class Runs:
    """The requests at work in threads, with what becomes their answers."""

    def __init__(self) -> None:
        self._all: dict[tuple[str, str], tuple[Run, asyncio.Future[Response | None]]] = {}

    async def answer(self, run: Run, make: Callable[[], Awaitable[Response]]) -> Response:
        """Return the answer of the same request whose caller has gone, else make one."""
        earlier, made = self._all.get(run.key, (None, None))
        if made is not None and earlier is not None and await _is_same(earlier, run):
            found = await asyncio.shield(made)
            if found is not None:
                return found
        made = asyncio.get_running_loop().create_future()
        entry = self._all[run.key] = run, made
        response = None
        try:
            response = await make()
            return response
        finally:
            made.set_result(response if _is_for_all(response) else None)
            if self._all.get(run.key) is entry:
                del self._all[run.key]


async def _is_same(earlier: Run, run: Run) -> bool:
    if earlier.body != run.body:
        return False
    gone = asyncio.ensure_future(disconnected(earlier.receive))
    await asyncio.wait((gone,), timeout=0)
    gone.cancel()
    return gone.done()


def _is_for_all(response: Response | None) -> bool:
    """Whether it can be sent twice: no stream, and nothing is done once it was sent."""
    return response is not None and hasattr(response, "body") and response.background is None
