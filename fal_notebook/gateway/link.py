"""The gateway's own words with a runner, marked by a header that callers cannot set."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

from fal_notebook.gateway.fleet import Runner
from fal_notebook.gateway.headers import request_head
from fal_notebook.gateway.upstream import Connection, UpstreamError
from fal_notebook.runner.spec import LINK, SECRET

# How often an opening socket is tried while its runner starts to listen.
CONNECT_PERIOD = 0.003
# It is looked this often whether the runner lives: a broken network is silent.
ALIVE_PERIOD = 5.0


async def states(runner: Runner, alive: Callable[[], bool]) -> AsyncGenerator[dict[str, Any], None]:
    """Yield a runner's states, from its first, and what failed, until its link closes.

    Parameters
    ----------
    alive : callable
        Whether its process lives: so long it is waited for, and listened to.

    Raises
    ------
    UpstreamError
        When the link breaks, or the runner is gone.
    """
    connection = await _connect(runner, alive)
    watching = asyncio.ensure_future(_close_when_gone(connection, alive))
    buffer = b""
    try:
        connection.begin(_request(runner, b"states"))
        await connection.head()
        # Nothing stands between a read and its lines: a failure, which the runner tells before it
        # answers, is known before its caller has the answer and asks for the failure.
        while data := await connection.read():
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                yield json.loads(line)
    finally:
        watching.cancel()
        connection.close()


async def _close_when_gone(connection: Connection, alive: Callable[[], bool]) -> None:
    await asyncio.sleep(ALIVE_PERIOD)
    while alive():
        await asyncio.sleep(ALIVE_PERIOD)
    connection.close()


async def end(runner: Runner) -> None:
    """Say that the last request was sent; a runner that has gone need not hear it."""
    with contextlib.suppress(UpstreamError, OSError):
        connection = await runner.pool.acquire()
        connection.begin(_request(runner, b"end"))
        await connection.head()
        connection.close()


async def _connect(runner: Runner, alive: Callable[[], bool]) -> Connection:
    while True:
        try:
            return await runner.pool.acquire()
        except UpstreamError:
            if not alive():
                raise
            await asyncio.sleep(CONNECT_PERIOD)


def _request(runner: Runner, wanted: bytes) -> bytes:
    added = (
        (b"host", b"runner"),
        (b"content-length", b"0"),
        (SECRET, runner.row.secret.encode()),
        (LINK, wanted),
    )
    return request_head(b"POST", b"/", [], added, keep_authorization=False)
