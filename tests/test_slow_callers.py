"""Callers that are slow, silent or many: others are answered, and what they held is freed."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import httpx
import psutil
import pytest
from starlette.types import Receive, Scope, Send

from fal_notebook.discovery import GatewayInfo
from fal_notebook.gateway import limits
from fal_notebook.gateway.protocol import BoundedProtocol
from fal_notebook.runner.server import Server

BIG = 50_000_000
GET = b"GET %b HTTP/1.1\r\nHost: h\r\n\r\n"


class Host:
    """The gateway's protocol around an app of the test's, in the test's own loop."""

    def __init__(self, server: Server, port: int) -> None:
        self.state, self.port = server.server_state, port
        self.hold = asyncio.Event()

    @contextlib.asynccontextmanager
    async def connected(
        self, sent: bytes = b""
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """Connect and send what is given."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(sent)
        try:
            yield reader, writer
        finally:
            writer.close()

    async def answers(self) -> bool:
        """Say whether another caller is answered."""
        async with self.connected(GET % b"/") as (reader, _):
            return (await reader.readline()).endswith(b" 200 OK\r\n")

    async def is_free(self) -> None:
        """Wait until no connection and no request is left."""
        while self.state.connections or self.state.tasks or BoundedProtocol._silent:
            await asyncio.sleep(0.01)


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body = b"x" * BIG if scope["path"] == "/big" else b"ok"
        if scope["path"] == "/held":
            await host.hold.wait()
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    server = Server(app, BoundedProtocol)
    listener = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    listener.close()
    await listener.wait_closed()
    server.config.port = port
    serving = asyncio.ensure_future(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    host = Host(server, port)
    yield host
    server.stop()
    await serving


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits of a fifth of a second."""
    for name in ("HEAD_TIME", "BODY_STALL", "READ_STALL"):
        monkeypatch.setattr(limits, name, 0.2)


async def drip(writer: asyncio.StreamWriter, head: bytes) -> None:
    with contextlib.suppress(ConnectionError):
        for byte in head:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.02)


@pytest.mark.usefixtures("quick")
async def test_a_head_of_one_byte_at_a_time_is_408(host: Host) -> None:
    async with host.connected() as (reader, writer):
        dripping = asyncio.ensure_future(drip(writer, GET % b"/" * 9))
        assert await host.answers()
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"connection: close" in answer
        await dripping
    await host.is_free()


@pytest.mark.usefixtures("quick")
async def test_the_second_head_of_a_connection_is_not_waited_for_either(host: Host) -> None:
    async with host.connected(GET % b"/" + b"GET / HT") as (reader, _):
        answer = await reader.read()
        assert answer.count(b"HTTP/1.1 200 ") == answer.count(b"HTTP/1.1 408 ") == 1
    await host.is_free()


@pytest.mark.usefixtures("quick")
async def test_who_says_nothing_is_let_go_without_a_word(host: Host) -> None:
    async with host.connected() as (reader, _):
        assert await reader.read() == b""
    await host.is_free()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("rest", [b"", b" }"])
async def test_lines_without_a_head_hold_no_connection(host: Host, rest: bytes) -> None:
    post = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n"
    async with host.connected(post % len(rest)) as (reader, writer):
        assert (await reader.readline()).endswith(b" 200 OK\r\n")
        writer.write(rest)
        dripping = asyncio.ensure_future(drip(writer, b"\r\n" * 300))
        await reader.read()
        dripping.cancel()
    await host.is_free()


SIZES = [(limits.HEAD, b"200"), (limits.HEAD + 1, b"431"), (150_000, b"431"), (300_000, b"431")]


@pytest.mark.parametrize(("size", "status"), SIZES)
@pytest.mark.parametrize("before", [b"", GET % b"/"])
@pytest.mark.parametrize("pieces", [1, 3])
async def test_a_head_has_so_many_bytes_and_no_more(
    host: Host, size: int, status: bytes, before: bytes, pieces: int
) -> None:
    start = (GET % b"/")[:-2] + b"X: "
    head = start + b"a" * (size - len(start) - 4) + b"\r\n\r\n"
    async with host.connected() as (reader, writer):
        step = -(-size // pieces)
        for number in range(pieces):
            writer.write((b"" if number else before) + head[number * step :][:step])
            await writer.drain()
            await asyncio.sleep(0.01)
        if before:
            assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200 ")
        assert (await reader.readline()).startswith(b"HTTP/1.1 " + status)


@pytest.mark.parametrize("size", [70_000, 100_000, 300_000])
async def test_a_url_that_is_too_long_is_414(host: Host, size: int) -> None:
    async with host.connected(GET % (b"/" + b"a" * size)) as (reader, _):
        assert (await reader.read()).startswith(b"HTTP/1.1 414 ")


async def test_an_answer_that_nobody_reads_is_given_up(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "READ_STALL", 0.2)
    async with host.connected(GET % b"/big") as (_, writer):
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        while host.state.connections:
            await asyncio.sleep(0.01)
    await host.is_free()


async def test_what_an_app_answers_may_be_read_as_slowly_as_one_likes(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "READ_STALL", 0.0)
    async with host.connected(GET % b"/run/big") as (reader, _):
        assert await reader.read(6) == b"HTTP/1"


async def test_the_one_that_is_silent_for_longest_makes_room(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "silent", lambda: 20)
    async with contextlib.AsyncExitStack() as stack:
        many = [await stack.enter_async_context(host.connected()) for _ in range(100)]
        assert await host.answers()
        assert len(BoundedProtocol._silent) <= 21
        assert await many[0][0].read() == b""
        many[-1][1].write(GET % b"/")
        assert (await many[-1][0].readline()).endswith(b" 200 OK\r\n")
    await host.is_free()


async def test_who_waits_for_an_answer_makes_no_room(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "silent", lambda: 2)
    async with host.connected(GET % b"/held") as (reader, _):
        while not host.state.tasks:
            await asyncio.sleep(0.01)
        for _ in range(5):
            assert await host.answers()
        host.hold.set()
        assert (await reader.readline()).endswith(b" 200 OK\r\n")
    await host.is_free()


BROKEN: dict[str, bytes] = {
    "a head that is none": b"NONSENSE\r\n\r\n",
    "a head without an end": b"GET / HTTP/1.1\r\nX: " + b"a" * 300_000,
    "a body that is none": b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
}


@pytest.mark.parametrize("case", BROKEN)
async def test_a_refusal_comes_behind_the_answer_to_the_request_before(
    host: Host, case: str
) -> None:
    async with host.connected(GET % b"/held" + BROKEN[case]) as (reader, _):
        while not host.state.tasks:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)  # the gateway has read it all
        host.hold.set()
        answer = await reader.read()
    first, second = answer.split(b"HTTP/1.1 ")[1:]
    assert (first[:3], first[-2:], second[:1]) == (b"200", b"ok", b"4")
    await host.is_free()


def test_a_process_opens_as_many_files_as_it_may() -> None:
    limits.raise_files()
    assert limits.silent() >= 128


def test_thousands_of_half_open_connections_keep_nobody_out(
    gateway: GatewayInfo, act: str, eventually: Any
) -> None:
    limits.raise_files()
    address, process = (
        ("127.0.0.1", int(gateway.url.rsplit(":", 1)[1])),
        psutil.Process(gateway.pid),
    )
    before = process.num_fds()
    begun = (b"", b"POST /run/tester/act HTTP/1.1\r\nHost", GET[:9], b"\0")
    with contextlib.ExitStack() as stack:
        for number in range(min(3000, limits.silent())):
            connection = stack.enter_context(socket.create_connection(address))
            with contextlib.suppress(OSError):
                connection.sendall(begun[number % len(begun)])
        assert httpx.post(act, json={"n": 1}).json() == 1
        assert process.num_fds() > before + 100
    eventually(lambda: process.num_fds() < before + 50)
