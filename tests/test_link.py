"""The gateway's link to a runner: what it hears, when, and for how long it listens."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from fal_notebook.gateway import link
from fal_notebook.gateway.fleet import Runner
from fal_notebook.gateway.store import RunnerRow
from fal_notebook.gateway.upstream import Connection, Pool, UpstreamError

IDLE = b'11\r\n{"state": "IDLE"}\r\n1\r\n\n\r\n'
FAILURE = b'a\r\n{"error":1\r\n2\r\n}\n\r\n'


class RememberingPool(Pool):
    """A pool that tells which connections it made."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.made: list[Connection] = []

    async def acquire(self) -> Connection:
        self.made.append(await super().acquire())
        return self.made[-1]


@contextlib.asynccontextmanager
async def told(lives: Any) -> AsyncIterator[tuple[Any, RememberingPool]]:
    """Yield the states of a runner that tells one and is silent then, until nobody listens."""

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + IDLE)
        with contextlib.suppress(ConnectionError):
            await reader.read()  # as long as the gateway listens
            writer.close()
            await writer.wait_closed()
        left.set()

    left = asyncio.Event()
    server = await asyncio.start_server(silent, "127.0.0.1")
    port = server.sockets[0].getsockname()[1]
    row = RunnerRow("r", "me", "app", "rev", "SETUP", "secret", "XS")
    pool = RememberingPool(f"tcp:127.0.0.1:{port}")
    async with server:
        async with contextlib.aclosing(
            link.states(Runner(row, since=0.0, pool=pool), lives)
        ) as states:
            yield states, pool
        await left.wait()


async def test_a_runner_that_is_gone_is_not_listened_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the network does not say that the runner has ended."""
    monkeypatch.setattr(link, "ALIVE_PERIOD", 0.02)
    lives = iter([True, True, False])
    async with told(lambda: next(lives)) as (states, _):
        assert await anext(states) == {"state": "IDLE"}
        with pytest.raises(UpstreamError):
            await anext(states)
    assert next(lives, None) is None


async def test_a_failure_is_known_before_its_answer_can_be_sent() -> None:
    """One step of the loop after it was read: no answer that is read then is quicker."""
    heard = []

    async def follow(states: Any) -> None:
        async for line in states:
            heard.append(line)

    async with told(lambda: True) as (states, pool):
        assert await anext(states) == {"state": "IDLE"}
        following = asyncio.ensure_future(follow(states))
        await asyncio.sleep(0)
        pool.made[-1].data_received(FAILURE)
        await asyncio.sleep(0)
        assert heard == [{"error": 1}]
        following.cancel()
        await asyncio.wait([following])
