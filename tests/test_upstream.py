"""The connections to a runner, against peers named after the failure that they cause."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from fal_notebook.gateway.headers import is_pickle, request_head, response_headers
from fal_notebook.gateway.upstream import HIGH_WATER, Pool, RefusedError, UpstreamError

Peer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
GET = b"GET / HTTP/1.1\r\nhost: runner\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


@contextlib.asynccontextmanager
async def pool_of(peer: Peer) -> AsyncIterator[Pool]:
    """Give a pool of connections to a server that runs `peer` for each of them."""

    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        with contextlib.suppress(
            ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError
        ):
            await peer(reader, writer)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    pool = Pool(f"tcp:127.0.0.1:{server.sockets[0].getsockname()[1]}")
    try:
        yield pool
    finally:
        pool.close()
        server.close()
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving)


def answers(*responses: bytes) -> Peer:
    """Return a peer that gives these answers, one per request, then closes."""

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for response in responses:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(response)
        await writer.drain()

    return peer


async def exchange(pool: Pool, request: bytes = GET) -> tuple[int, bytes]:
    connection = await pool.acquire()
    try:
        connection.begin(request)
        await connection.head()
        body = b""
        while data := await connection.read():
            body += data
        return connection.status, body
    finally:
        pool.release(connection)


async def test_a_connection_is_used_again() -> None:
    connections = 0

    async def counting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await answers(OK, OK, OK)(reader, writer)

    async with pool_of(counting) as pool:
        assert [await exchange(pool) for _ in range(3)] == [(200, b"ok")] * 3
    assert connections == 1


@pytest.mark.parametrize(
    ("response", "body"),
    [
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n1\r\nb\r\n0\r\n\r\n",
            b"ab",
        ),
        (b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + OK, b"ok"),
        (b"HTTP/1.0 200 OK\r\n\r\nuntil the close", b"until the close"),
    ],
)
async def test_every_framing_is_read(response: bytes, body: bytes) -> None:
    async with pool_of(answers(response)) as pool:
        assert await exchange(pool) == (200, body)


async def test_an_idle_connection_that_died_is_replaced_unnoticed() -> None:
    async with pool_of(answers(OK)) as pool:
        for _ in range(5):
            assert await exchange(pool) == (200, b"ok")
            await asyncio.sleep(0.01)  # the close arrives


@pytest.mark.parametrize(
    ("response", "kind"),
    [
        (b"", "runner_disconnected"),
        (b"HTTP/1.1 200", "runner_disconnected"),
        (b"SSH-2.0-nonsense\r\n\r\n", "runner_connection_error"),
        (b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", None),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf", "runner_incomplete_response"),
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab",
            "runner_incomplete_response",
        ),
    ],
)
async def test_each_failure_has_its_name(response: bytes, kind: str | None) -> None:
    async with pool_of(answers(response)) as pool:
        with pytest.raises(UpstreamError) as caught:
            await exchange(pool)
    assert kind in (None, caught.value.kind)
    assert caught.value.status == (502 if kind == "runner_incomplete_response" else 503)


async def test_a_runner_that_does_not_listen_is_refused_before_anything_is_sent() -> None:
    async with pool_of(answers()) as gone:
        pass
    for pool in (gone, Pool("unix:/nowhere.sock"), Pool("")):
        with pytest.raises(RefusedError):
            await pool.acquire()


async def test_what_nobody_asked_for_never_becomes_the_next_answer() -> None:
    async with pool_of(answers(OK + OK.replace(b"ok", b"no"), OK)) as pool:
        assert await exchange(pool) == (200, b"ok")
        assert await exchange(pool) == (200, b"ok")

    async def unasked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK.replace(b"ok", b"no"))
        await answers(OK)(reader, writer)

    async with pool_of(unasked) as pool:
        first = await pool.acquire()
        pool.release(first)
        await asyncio.sleep(0.05)
        second = await pool.acquire()
        assert second is not first
        pool.release(second)


async def test_a_head_answer_ends_with_its_head() -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"
    async with pool_of(answers(head, head)) as pool:
        for _ in range(2):
            connection = await pool.acquire()
            connection.begin(b"HEAD / HTTP/1.1\r\nhost: runner\r\n\r\n", bodyless=True)
            await connection.head()
            assert (await connection.read(), connection.complete) == (b"", True)
            pool.release(connection)


async def test_a_runner_that_answers_early_gets_no_more_body() -> None:
    async def early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(5)

    async with pool_of(early) as pool:
        connection = await pool.acquire()
        connection.begin(b"POST / HTTP/1.1\r\ncontent-length: 999999999\r\n\r\n")
        sent = 0
        while await asyncio.wait_for(connection.send(b"x" * 65536), 5):
            sent += 1
            await asyncio.sleep(0)
        await connection.head()
        assert (connection.status, connection.reusable) == (413, False)
        pool.release(connection)


async def test_a_fast_runner_waits_for_a_slow_reader() -> None:
    sent = 0

    async def fast(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\n\r\n")
        for _ in range(1000):
            writer.write(b"x" * 65536)
            sent += 65536
            await writer.drain()

    async with pool_of(fast) as pool:
        connection = await pool.acquire()
        connection.begin(GET)
        await connection.head()
        before = -1
        while before != sent:  # until the peer stands still
            before = sent
            await asyncio.sleep(0.1)
        assert sent < 20_000_000
        assert len(connection.take()) <= 20 * HIGH_WATER
        received = 0
        while data := await connection.read():
            received += len(data)
        assert received > 1000 * 65536 - 20 * HIGH_WATER
        pool.release(connection)


# --- headers ----------------------------------------------------------------------------------
def _head(*headers: tuple[bytes, bytes], target: bytes = b"/") -> list[bytes]:
    added = [(b"x-fal-request-id", b"ours")]
    return request_head(b"POST", target, list(headers), added, False).split(b"\r\n")


def test_the_target_is_sent_as_it_came() -> None:
    assert _head(target=b"//a%2Fb/%C3%A9?x=%20&&y")[0] == b"POST //a%2Fb/%C3%A9?x=%20&&y HTTP/1.1"


def test_callers_cannot_forge_headers_of_the_platform() -> None:
    lines = _head(
        (b"x-fal-request-id", b"theirs"),
        (b"x-fal-runner-secret", b"guess"),
        (b"x-fal-caller-user-id", b"root"),
        (b"x-fal-runner-hint", b"h"),
        (b"x-fal-queue-priority", b"low"),
        (b"authorization", b"Key a:b"),
    )
    assert lines[1:-2] == [
        b"x-fal-runner-hint: h",
        b"x-fal-queue-priority: low",
        b"x-fal-request-id: ours",
    ]


@pytest.mark.parametrize(
    "name", [b"x_fal_caller_user_id", b"x-fal_anything", b"x_fal-runner_secret"]
)
def test_a_header_that_wsgi_would_read_as_the_platforms_is_dropped(name: bytes) -> None:
    assert not any(b"mine" in line for line in _head((name, b"mine")))


def test_connection_names_no_header_away_that_says_where_a_body_ends() -> None:
    named = (b"connection", b"Host, Content-Length, Transfer-Encoding, x-mine")
    headers = [named, (b"host", b"h"), (b"content-length", b"3"), (b"x-mine", b"a")]
    head = request_head(b"POST", b"/", headers, [], False, as_it_came=True)
    assert head == b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 3\r\n\r\n"


def test_headers_of_one_hop_end_there_also_those_that_connection_names() -> None:
    hop = ((b"connection", b"close, X-Mine"), (b"x-mine", b"1"), (b"te", b"trailers"))
    kept = ((b"accept", b"a"), (b"accept", b"b"))
    length = (b"content-length", b"3")
    assert _head(*hop, *kept, length)[1:3] == [b"accept: a", b"accept: b"]
    assert response_headers([*hop, *kept, length], 200, b"id") == [
        *kept,
        length,
        (b"x-fal-request-id", b"id"),
    ]
    assert length not in response_headers([length], 304, b"id")


def test_a_pickle_is_recognised_however_it_is_spelled() -> None:
    assert is_pickle(b"Application/VND.fal-notebook.Pickle; charset=x")
    assert not is_pickle(b"application/json")
    assert not is_pickle(None)
