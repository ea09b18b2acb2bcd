"""Connections from the gateway to one runner: a small keep-alive HTTP/1.1 pool on httptools."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import httptools

# A response may be this far ahead of its reader before the runner has to wait.
HIGH_WATER = 64 * 1024

Header = tuple[bytes, bytes]
Connect = Callable[[Callable[[], asyncio.Protocol]], Any]


class UpstreamError(Exception):
    """The runner went away. `answered` says whether any byte of a response had come."""

    def __init__(self, message: str, answered: bool) -> None:
        super().__init__(message)
        self.answered = answered


class Connection(asyncio.Protocol):
    """One connection; one exchange at a time: `send` a request, `head`, then `read` to the end."""

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
        self.complete = False
        self._chunks: deque[bytes] = deque()
        self._buffered = 0
        self._error: Exception | None = None
        self._in_exchange = False
        self._bodyless = False

    # --- what asyncio calls ------------------------------------------------------------------
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the transport."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        """Feed the parser; bytes outside an exchange, or that are no HTTP, end the connection."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"the runner sent no valid HTTP: {error}")
        if self._buffered > HIGH_WATER and self._transport is not None:
            self._transport.pause_reading()
        self._notify()

    def connection_lost(self, exc: Exception | None) -> None:
        """End a body that runs until the close; fail any other exchange that is incomplete."""
        self._transport = None
        self._writable.set()
        if self.status and exc is None and self._until_close():
            self.complete = True
        if not self.complete:
            self._fail("the runner closed the connection")
        self._notify()

    def pause_writing(self) -> None:
        """Hold `send` back."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Let `send` go on."""
        self._writable.set()

    # --- what the parser calls ---------------------------------------------------------------
    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a header of the response (or a trailer, which is dropped)."""
        if not self.status:
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Take the status; an interim answer (1xx) is dropped with its headers."""
        status = self._parser.get_status_code()
        if status < 200 and status != 101:
            self.headers.clear()
        else:
            self.status = status
            self.complete = self._bodyless

    def on_body(self, body: bytes) -> None:
        """Keep a piece of the body."""
        self._chunks.append(body)
        self._buffered += len(body)

    def on_message_complete(self) -> None:
        """Mark the response as whole."""
        self.complete = self.status != 0

    # --- what the proxy calls ----------------------------------------------------------------
    @property
    def reusable(self) -> bool:
        """Whether another exchange may follow on this connection."""
        return (
            self._transport is not None
            and not self._transport.is_closing()
            and self._error is None
            and not self._bodyless
            and (not self._in_exchange or (self.complete and self._parser.should_keep_alive()))
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
        self._write(data)

    async def send(self, data: bytes) -> None:
        """Send a piece of the request's body, waiting while the runner does not take it."""
        self._write(data)
        await self._writable.wait()

    async def head(self) -> None:
        """Wait for `status` and `headers`.

        Raises
        ------
        UpstreamError
            When the connection ends before.
        """
        while not self.status:
            await self._progress(answered=False)

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
            await self._progress(answered=True)
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

    def _write(self, data: bytes) -> None:
        if self._transport is None:
            raise UpstreamError("the runner closed the connection", answered=False)
        self._transport.write(data)

    async def _progress(self, answered: bool) -> None:
        if self._error is not None:
            raise UpstreamError(str(self._error), answered)
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _until_close(self) -> bool:
        """Whether the body has no length of its own (RFC 9112, 6.3, rule 8)."""
        return not any(n in (b"content-length", b"transfer-encoding") for n, _ in self.headers)

    def _fail(self, message: str) -> None:
        self._error = self._error or ConnectionError(message)
        self.close()

    def _notify(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Pool:
    """Keep-alive connections to one runner; the newest idle one is used first."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._idle: list[Connection] = []

    async def acquire(self) -> Connection:
        """Return an idle connection or a new one.

        Raises
        ------
        UpstreamError
            When the runner does not accept.
        """
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable:
                return connection
        try:
            return await self._connect()
        except OSError as error:
            raise UpstreamError(f"the runner does not accept: {error}", False) from error

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        if self._address.startswith("unix:"):
            _, connection = await loop.create_unix_connection(Connection, self._address[5:])
        else:
            host, _, port = self._address.removeprefix("tcp:").rpartition(":")
            _, connection = await loop.create_connection(Connection, host, int(port))
        return connection

    def release(self, connection: Connection) -> None:
        """Take a connection back; one that cannot serve again is closed."""
        if connection.reusable:
            self._idle.append(connection)
        else:
            connection.close()

    def close(self) -> None:
        """Close every idle connection."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()
