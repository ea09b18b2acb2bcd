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
# While nothing comes, it is looked this often whether the runner lives: a broken network is silent.
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
        When the link breaks.
    """
    connection = await _connect(runner, alive)
    buffer = b""
    try:
        connection.begin(_request(runner, b"states"))
        await connection.head()
        while data := await _read(connection, alive):
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                yield json.loads(line)
    finally:
        connection.close()


async def _read(connection: Connection, alive: Callable[[], bool]) -> bytes:
    """Return what comes next, nothing when the link was closed or the runner is gone."""
    reading = asyncio.ensure_future(connection.read())
    try:
        while not (await asyncio.wait((reading,), timeout=ALIVE_PERIOD))[0]:
            if not alive():
                return b""
        return reading.result()
    finally:
        reading.cancel()


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
