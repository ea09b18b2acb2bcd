"""Connections from the gateway to one runner: a small keep-alive HTTP/1.1 pool on httptools."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections import deque
from typing import cast

import httptools

from fal_notebook.gateway.headers import Header, request_head

# A response may be this far ahead of its reader before the runner has to wait.
HIGH_WATER = 64 * 1024
INCOMPLETE = "runner_incomplete_response"


class UpstreamError(Exception):
    """The runner broke an exchange off. `status` and `kind` are what the caller is told."""

    def __init__(self, message: str, status: int, kind: str) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind

    @property
    def runner_lost(self) -> bool:
        """Whether the runner is of no use any more, to nobody.

        A runner that lives answers every request, if with a 500, and closes no connection of its
        gateway. One that closes without an answer, or does not accept, has ended or is about to:
        what else it has in flight is lost with it, and no request may follow.
        """
        return self.kind in ("runner_disconnected", "runner_connection_refused")


class RefusedError(UpstreamError):
    """The runner accepted nothing, or not all of the request: its function was not called."""

    def __init__(self, message: str) -> None:
        super().__init__(message, 503, "runner_connection_refused")


class Connection(asyncio.Protocol):
    """One connection; one exchange at a time: `send` a request, `head`, then `read` to the end."""

    accepts_upgrade = False

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._reset()

    def _reset(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self.headers: list[Header] = []
        self.status = 0
        self._interim = False
        self.complete = False
        self._chunks: deque[bytes] = deque()
        self._buffered = 0
        self._error: UpstreamError | None = None
        self._in_exchange = False
        self._bodyless = False
        self._half_sent = False
        self._keep_alive = False

    # --- what asyncio calls ------------------------------------------------------------------
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the transport."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self._is_unix = transport.get_extra_info("socket").family == socket.AF_UNIX

    def data_received(self, data: bytes) -> None:
        """Feed the parser; bytes outside an exchange, or that are no HTTP, end the connection."""
        if not self._in_exchange or self.complete:
            self._fail("the runner sent what nobody asked for")
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as error:
            self.upgraded(data[error.args[0] :])
        except httptools.HttpParserError as error:
            self._fail(f"the runner sent no valid HTTP: {error}", "runner_connection_error")
        transport = self._transport
        if self._buffered > HIGH_WATER and transport is not None and not transport.is_closing():
            transport.pause_reading()
        self._notify()

    def upgraded(self, data: bytes) -> None:
        """Refuse what nobody asked for; `data` follows the head."""
        self._fail("the runner upgraded a connection", "runner_connection_error")

    def connection_lost(self, exc: Exception | None) -> None:
        """End a body that runs until the close; fail any other exchange that is incomplete."""
        if exc is not None and self._in_exchange and not self.complete:
            self._read_what_came()
        self._transport = None
        self._writable.set()
        if self.status and exc is None and self._until_close():
            self.complete = True
        if not self.complete and not self.status and self._error is None and self._unread(exc):
            self._error = RefusedError("the runner ended before it had read the request")
        if not self.complete:
            self._fail("the runner closed the connection without an answer")
        self._notify()

    def _read_what_came(self) -> None:
        """Take in an answer that came before its sender closed while it was still written to."""
        assert self._transport is not None
        with contextlib.suppress(OSError):
            descriptor = self._transport.get_extra_info("socket").fileno()
            while self._error is None and (data := os.read(descriptor, HIGH_WATER)):
                self.data_received(data)

    def _unread(self, exc: Exception | None) -> bool:
        """Whether the runner left bytes of the request unread, so that it has not begun it.

        Unix sockets say so: a close with bytes unread is a reset, any other an end of file.
        """
        return self._is_unix and isinstance(exc, (ConnectionResetError, BrokenPipeError))

    def pause_writing(self) -> None:
        """Hold `send` back."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Let `send` go on."""
        self._writable.set()

    # --- what the parser calls ---------------------------------------------------------------
    def on_message_begin(self) -> None:
        """Refuse a second response to one request."""
        if self.complete:
            self._fail("the runner answered twice")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a header of the response (or a trailer, which is dropped)."""
        if not self.status:
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Take the status; an interim answer (1xx) is dropped with its headers."""
        status = self._parser.get_status_code()
        if status < 200 and not (status == 101 and self.accepts_upgrade):
            self.headers.clear()
            self._interim = True
        elif not self.complete:
            self.status = status
            self.complete = self._bodyless

    def on_body(self, body: bytes) -> None:
        """Keep a piece of the body; what follows a complete response is no part of it."""
        if self.complete:
            return
        self._chunks.append(body)
        self._buffered += len(body)

    def on_message_complete(self) -> None:
        """Mark the response as whole."""
        self.complete = self.status != 0
        self._keep_alive = self._parser.should_keep_alive()  # it is forgotten right after

    # --- what the proxy calls ----------------------------------------------------------------
    @property
    def reusable(self) -> bool:
        """Whether another exchange may follow on this connection."""
        return (
            self._transport is not None
            and not self._transport.is_closing()
            and self._error is None
            and not self._bodyless
            and not self._half_sent
            and (not self._in_exchange or (self.complete and self._keep_alive))
        )

    def begin(self, data: bytes, bodyless: bool = False) -> None:
        """Start an exchange with the head of a request, and its body if that is known.

        `bodyless` says that the response ends with its head (HEAD); such a connection is not
        used again, for the parser cannot be told.
        """
        if self._in_exchange:
            self._reset()
        self._in_exchange = True
        self._bodyless = bodyless
        if self._transport is None:
            raise _disconnected()
        self._transport.write(data)

    async def send(self, data: bytes, duplex: bool = False) -> bool:
        """Send a piece of the request's body, waiting while the runner does not take it.

        Returns False when the runner wants no more of it: it has gone or, unless it may go on
        while it answers (`duplex`), has answered. Such a connection is not used again, for the
        request was not sent to its end.
        """
        wanted = not self.status or duplex
        if self._transport is not None and wanted:
            self._transport.write(data)
            await self._writable.wait()
        self._half_sent = self._transport is None or (self.status != 0 and not duplex)
        return not self._half_sent

    async def wants_body(self, timeout: float) -> bool:
        """Say whether the body is to be sent: not once the request is answered (100-continue).

        Raises
        ------
        UpstreamError
            When the connection ends before that is known.
        """
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._any_answer(), timeout)
        self._half_sent = self.status != 0
        return not self._half_sent

    async def _any_answer(self) -> None:
        while not self.status and not self._interim:
            await self._progress()

    async def head(self) -> None:
        """Wait for `status` and `headers`.

        Raises
        ------
        UpstreamError
            When the connection ends before.
        """
        while not self.status:
            await self._progress()

    async def read(self) -> bytes:
        """Return the next piece of the body, b"" at its end.

        Raises
        ------
        UpstreamError
            When the connection ends inside the body.
        """
        while not self._chunks:
            if self.complete:
                return b""
            await self._progress()
        return self.take()

    def take(self) -> bytes:
        """Return what of the body has come so far, without waiting."""
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        if self._buffered > HIGH_WATER and self._transport is not None:
            self._transport.resume_reading()
        self._buffered = 0
        return data

    def take_rest(self) -> bytes:
        """Return what is left of a complete body, b"" if nothing is."""
        return self.take() if self._chunks else b""

    def close(self) -> None:
        """Close at once; a runner that is still working notices its caller has gone."""
        if self._transport is not None:
            self._transport.abort()

    async def _progress(self) -> None:
        if self._error is not None:
            raise self._error
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    @property
    def endless(self) -> bool:
        """Whether the response has a body whose length is not known beforehand."""
        has_body = not self._bodyless and self.status not in (204, 304)
        return has_body and not any(name == b"content-length" for name, _ in self.headers)

    def _until_close(self) -> bool:
        """Whether the body has no length of its own (RFC 9112, 6.3, rule 8)."""
        return not any(n in (b"content-length", b"transfer-encoding") for n, _ in self.headers)

    def _fail(self, message: str, kind: str = "runner_disconnected") -> None:
        if self._error is None and self.status:
            self._error = UpstreamError(message, 502, INCOMPLETE)
        elif self._error is None:
            self._error = UpstreamError(message, 503, kind)
        self.close()

    def _notify(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _disconnected() -> UpstreamError:
    return RefusedError("the runner closed the connection")


class Pool:
    """Keep-alive connections to one runner; the newest idle one is used first.

    Parameters
    ----------
    reuse : bool
        False for servers that may close a connection just as it is used again.
    """

    def __init__(self, address: str, reuse: bool = True) -> None:
        self._address = address
        self._reuse = reuse
        self._idle: list[Connection] = []

    async def acquire(self) -> Connection:
        """Return an idle connection or a new one.

        Raises
        ------
        RefusedError
            When the runner does not accept.
        """
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable:
                return connection
        return await self.open(Connection)

    async def notify(self, request: bytes) -> int:
        """Send a request of which only the status matters; return that, 0 without an answer."""
        with contextlib.suppress(UpstreamError):
            connection = await self.acquire()
            try:
                connection.begin(request)
                await connection.head()
                return connection.status
            finally:
                self.release(connection)
        return 0

    async def get(self, path: bytes, accept: bytes, largest: int) -> bytes:
        """Return what is at a path, b"" when that is not answered with 200 or is larger.

        Raises
        ------
        UpstreamError
            When the runner does not answer.
        """
        connection = await self.acquire()
        content = b""
        try:
            added = ((b"host", b"127.0.0.1"), (b"accept", accept))
            connection.begin(request_head(b"GET", path, [], added, False))
            await connection.head()
            while connection.status == 200 and (piece := await connection.read()):
                content += piece
                if len(content) > largest:
                    return b""
            return content
        finally:
            self.release(connection)

    async def check(self) -> None:
        """See whether the runner still accepts.

        Raises
        ------
        RefusedError
        """
        self.release(await self.open(Connection))

    async def open(self, kind: type[Connection]) -> Connection:
        """Return a new connection, which is the caller's own to close; raises as `acquire`."""
        try:
            return await self._connect(kind)
        except OSError as error:
            raise RefusedError(f"the runner does not accept: {error}") from error

    async def _connect(self, kind: type[Connection]) -> Connection:
        loop = asyncio.get_running_loop()
        if not self._address:
            raise ConnectionError("it has no address")
        if self._address.startswith("unix:"):
            _, connection = await loop.create_unix_connection(kind, self._address[5:])
        else:
            host, _, port = self._address.removeprefix("tcp:").rpartition(":")
            _, connection = await loop.create_connection(kind, host.strip("[]"), int(port))
        return connection

    def release(self, connection: Connection) -> None:
        """Take a connection back; one that cannot serve again is closed."""
        if self._reuse and connection.reusable:
            self._idle.append(connection)
        else:
            connection.close()

    def close(self) -> None:
        """Close every idle connection."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()
