"""The gateway's link to a runner, where the network does not say that the runner has ended."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from fal_notebook.gateway import link
from fal_notebook.gateway.fleet import Runner
from fal_notebook.gateway.store import RunnerRow
from fal_notebook.gateway.upstream import Pool


async def test_a_runner_that_is_gone_is_not_listened_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "ALIVE_PERIOD", 0.02)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        writer.write(b'11\r\n{"state": "IDLE"}\r\n1\r\n\n\r\n')
        with contextlib.suppress(ConnectionError):
            await reader.read()  # as long as the gateway listens
            writer.close()
            await writer.wait_closed()
        left.set()

    left = asyncio.Event()
    server = await asyncio.start_server(silent, "127.0.0.1")
    port = server.sockets[0].getsockname()[1]
    row = RunnerRow("r", "me", "app", "rev", "SETUP", "secret", "XS")
    runner = Runner(row, since=0.0, pool=Pool(f"tcp:127.0.0.1:{port}"))
    lives = iter([True, True, False])
    async with server:
        told = [line async for line in link.states(runner, lambda: next(lives))]
        await left.wait()
    assert told == [{"state": "IDLE"}]
    assert next(lives, None) is None
