"""A WebSocket: its upgrade is a request like any other, then bytes pass both ways as they are.

Nothing of what passes is parsed, so extensions, fragments, pings and close codes are the server's
and the caller's own business.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import http
from typing import cast

from starlette.types import Receive, Send

from fal_notebook.gateway.exchange import ClientGoneError, Exchange
from fal_notebook.gateway.fleet import Runner
from fal_notebook.gateway.headers import Header, response_headers
from fal_notebook.gateway.splice import TUNNEL, Caller, Side, head_of
from fal_notebook.gateway.upstream import Connection
from fal_notebook.gateway.watch import Watch

# A handler of ours that is told to end, and then its caller, get so many seconds for it.
FAREWELL = 3.0

_UPGRADE: tuple[Header, ...] = ((b"connection", b"Upgrade"), (b"upgrade", b"websocket"))


def malformed(method: str, version: str, headers: dict[bytes, bytes]) -> str:
    """Return what is wrong with the request for a WebSocket, if anything is."""
    if version == "1.0":
        return "a WebSocket is asked for with HTTP/1.1, not HTTP/1.0"
    if method != "GET":
        return f"a WebSocket is asked for with GET, not {method}"
    if headers.get(b"sec-websocket-version") != b"13":
        return "a WebSocket needs the header Sec-WebSocket-Version: 13"
    try:
        nonce = base64.b64decode(headers.get(b"sec-websocket-key", b""), validate=True)
    except binascii.Error:
        nonce = b""
    return "" if len(nonce) == 16 else "Sec-WebSocket-Key must hold 16 bytes in base64"


class _Upgrading(Side, Connection):
    """A connection to a runner that may be upgraded."""

    accepts_upgrade = True

    def __init__(self) -> None:
        Side.__init__(self)
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
                await self._join(server, runner, watch)
            else:
                await self._send_response(server, runner, send, watch)
        finally:
            server.close()

    def _upgrade(self, runner: Runner) -> bytes:
        query, path = self._request.scope["query_string"], self._request.path
        target = path + b"?" + query if query else path
        return self._head(runner, b"GET", target, *_UPGRADE, as_it_came=True)

    async def _join(self, server: _Upgrading, runner: Runner, watch: Watch) -> None:
        """Pass bytes until one side ends; the caller has as long as any request."""
        caller: Caller = self._request.scope["extensions"][TUNNEL]
        self.status = server.status
        headers = response_headers(server.headers, server.status, self._request.id.encode())
        caller.write(head_of(server.status, [*_UPGRADE, *headers]) + server.early)
        caller.join(server)
        watch.with_caller = True
        runner.tunnels += 1
        try:
            await server.lost.wait()
            if runner.direct is None:
                watch.with_caller = False
                await self._closed(runner, b"the caller has gone")
        except asyncio.CancelledError:
            if watch.timed_out and watch.with_caller and runner.direct is None:
                await self._close_late(server, runner)
            raise
        finally:
            runner.tunnels -= 1
            if caller.transport is not None:
                caller.transport.close()

    async def _closed(self, runner: Runner, reason: bytes) -> None:
        """Wait until the handler has ended: until then it holds its slot."""
        if await self._tell(runner, b"close " + reason) == http.HTTPStatus.SERVICE_UNAVAILABLE:
            self._kill(runner, "the app failed with an error of its GPU")

    async def _close_late(self, server: _Upgrading, runner: Runner) -> None:
        """Have the socket closed for request_timeout; a handler that stays costs its runner."""
        try:
            await asyncio.wait_for(self._closed(runner, b"request_timeout"), FAREWELL)
            self._app.release(runner)
            self.released = True
            with contextlib.suppress(asyncio.TimeoutError):  # of a caller that does not answer
                await asyncio.wait_for(server.lost.wait(), FAREWELL)
        except asyncio.TimeoutError:
            self._kill(runner, f"request_timeout of request {self._request.id}")
