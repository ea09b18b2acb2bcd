"""`cancel_on_disconnect`: async code that ends when its caller goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import Request

from fal_notebook.runner.caller import LEFT


@asynccontextmanager
async def cancel_on_disconnect(request: Request) -> AsyncIterator[None]:
    """Leave the block, wherever it waits, when the caller of `request` goes away."""
    task = asyncio.current_task()
    assert task is not None
    gone = asyncio.ensure_future(_disconnected(request))
    gone.add_done_callback(lambda watch: None if watch.cancelled() else task.cancel())
    try:
        yield
    except asyncio.CancelledError:
        if not gone.done():
            raise
        request.scope[LEFT] = True
        if hasattr(task, "uncancel"):  # since Python 3.11
            task.uncancel()
    finally:
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
