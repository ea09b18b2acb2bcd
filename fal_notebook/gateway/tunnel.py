"""A WebSocket: its upgrade is a request like any other, then bytes pass both ways as they are.

Nothing of what passes is parsed, so extensions, fragments, pings and close codes are the server's
and the caller's own business.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import http
from typing import cast

from starlette.types import Message, Receive, Send

from fal_notebook.gateway.exchange import ClientGoneError, Exchange
from fal_notebook.gateway.fleet import Runner
from fal_notebook.gateway.headers import Header, response_headers
from fal_notebook.gateway.upstream import Connection
from fal_notebook.gateway.watch import Watch

# The type of the scope of such a request, and its extension that holds the `Caller`.
TUNNEL = "fal_notebook.tunnel"
# A caller may send so much before the server has agreed.
EARLY = 64 * 1024
_UPGRADE: tuple[Header, ...] = ((b"connection", b"Upgrade"), (b"upgrade", b"websocket"))


def malformed(method: str, headers: dict[bytes, bytes]) -> str:
    """Return what is wrong with the request for a WebSocket, if anything is."""
    if method != "GET":
        return f"a WebSocket is asked for with GET, not {method}"
    if headers.get(b"sec-websocket-version") != b"13":
        return "a WebSocket needs the header Sec-WebSocket-Version: 13"
    try:
        nonce = base64.b64decode(headers.get(b"sec-websocket-key", b""), validate=True)
    except binascii.Error:
        nonce = b""
    return "" if len(nonce) == 16 else "Sec-WebSocket-Key must hold 16 bytes in base64"


class _Side:
    """What both ends of a tunnel do: pass on what comes, hold back while the other is full."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: _Side | None = None
        self.lost = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()

    def write(self, data: bytes) -> None:
        """Send bytes to this end."""
        if self.transport is not None and data:
            self.transport.write(data)

    def hold(self, held: bool) -> None:
        """Take nothing from this end for now, or go on."""
        if self.transport is not None and not self.transport.is_closing():
            (self.transport.pause_reading if held else self.transport.resume_reading)()

    def full(self, is_full: bool) -> None:
        """Have the other end wait while this one does not take what it is sent."""
        (self._writable.clear if is_full else self._writable.set)()
        if self.other is not None:
            self.other.hold(is_full)

    def end(self) -> None:
        """Note that the connection of this end is lost; the other gets what is under way."""
        self.transport = None
        self.lost.set()
        self._writable.set()
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()


class Caller(_Side, asyncio.Protocol):
    """The caller's connection; before the upgrade it is answered as ASGI would."""

    def __init__(self) -> None:
        super().__init__()
        self._early = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection over."""
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Pass it on; what comes before the server has agreed is kept for it."""
        if self.other is not None:
            self.other.write(data)
            return
        self._early += data
        if len(self._early) > EARLY and self.transport is not None:
            self.transport.abort()

    def pause_writing(self) -> None:
        """Hold the server back."""
        self.full(True)

    def resume_writing(self) -> None:
        """Let the server go on."""
        self.full(False)

    def connection_lost(self, exc: Exception | None) -> None:
        """End the other side too."""
        self.end()

    def join(self, server: _Side) -> None:
        """Let bytes pass from now on."""
        self.other, server.other = server, self
        server.write(self._early)
        self._early = b""
        if not self._writable.is_set():
            server.hold(True)

    # --- as an ASGI server would -------------------------------------------------------------
    async def receive(self) -> Message:
        """Return when the caller has gone before anything was agreed."""
        await self.lost.wait()
        if self.other is not None:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Send an answer that is no upgrade; the connection ends with it."""
        if message["type"] == "http.response.start":
            headers = [h for h in message["headers"] if h[0] != b"connection"]
            self.write(_head(message["status"], [*headers, (b"connection", b"close")]))
            return
        self.write(message.get("body", b""))
        await self._writable.wait()
        if not message.get("more_body", False) and self.transport is not None:
            self.transport.close()


class _Upgrading(_Side, Connection):
    """A connection to a runner that may be upgraded."""

    accepts_upgrade = True

    def __init__(self) -> None:
        _Side.__init__(self)
        Connection.__init__(self)
        self.early = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the transport."""
        super().connection_made(transport)
        self.transport = self._transport

    def data_received(self, data: bytes) -> None:
        """Pass it on, once agreed."""
        if self.other is not None:
            self.other.write(data)
        elif self.status == http.HTTPStatus.SWITCHING_PROTOCOLS:
            self.early += data
        else:
            super().data_received(data)

    def upgraded(self, data: bytes) -> None:
        """Keep what follows the head."""
        self.early = data

    def pause_writing(self) -> None:
        """Hold the caller back."""
        super().pause_writing()
        self.full(True)

    def resume_writing(self) -> None:
        """Let the caller go on."""
        super().resume_writing()
        self.full(False)

    def connection_lost(self, exc: Exception | None) -> None:
        """End the other side too."""
        super().connection_lost(exc)
        self.end()


class Tunnel(Exchange):
    """An exchange whose answer may be an upgrade."""

    async def read_ahead(self, receive: Receive) -> None:
        """Read nothing: a request for an upgrade has no body."""
        self._more = False

    async def _exchange(self, runner: Runner, receive: Receive, send: Send, watch: Watch) -> None:
        server = cast(_Upgrading, await runner.traffic.open(_Upgrading))
        try:
            server.begin(self._upgrade(runner))
            self.sent = watch.answered = True
            watch.begin()
            await server.head()
            if watch.client_gone:
                raise ClientGoneError
            if server.status == http.HTTPStatus.SWITCHING_PROTOCOLS:
                await self._join(server, watch)
            else:
                await self._send_response(server, runner, send, watch)
        finally:
            server.close()

    def _upgrade(self, runner: Runner) -> bytes:
        query, path = self._request.scope["query_string"], self._request.path
        target = path + b"?" + query if query else path
        return self._head(runner, b"GET", target, *_UPGRADE, as_it_came=True)

    async def _join(self, server: _Upgrading, watch: Watch) -> None:
        """Pass bytes until one side ends; the caller has as long as any request."""
        caller: Caller = self._request.scope["extensions"][TUNNEL]
        self.status = server.status
        headers = response_headers(server.headers, server.status, self._request.id.encode())
        caller.write(_head(server.status, [*_UPGRADE, *headers]) + server.early)
        caller.join(server)
        watch.with_caller = True
        try:
            await server.lost.wait()
        finally:
            if caller.transport is not None:
                caller.transport.close()


def _head(status: int, headers: list[Header]) -> bytes:
    first = b"HTTP/1.1 %d %b" % (status, http.HTTPStatus(status).phrase.encode())
    return b"\r\n".join([first, *(name + b": " + value for name, value in headers)]) + b"\r\n\r\n"
