"""Two connections of which each gets what comes on the other; before that, a caller is answered."""

from __future__ import annotations

import asyncio
import http.client
from typing import cast

from starlette.types import Message

from fal_notebook.gateway.headers import Header

# The type of the scope of a request for a tunnel, and its extension that holds the `Caller`.
TUNNEL = "fal_notebook.tunnel"
# A caller may send so much before the server has agreed.
EARLY = 64 * 1024


class Side:
    """What both ends of a tunnel do: pass on what comes, hold back while the other is full."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: Side | None = None
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


class Caller(Side, asyncio.Protocol):
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

    def join(self, server: Side) -> None:
        """Let bytes pass from now on, unless the caller has gone meanwhile."""
        self.other, server.other = server, self
        server.write(self._early)
        self._early = b""
        if self.lost.is_set():
            self.end()
        elif not self._writable.is_set():
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
            self.write(head_of(message["status"], [*headers, (b"connection", b"close")]))
            return
        self.write(message.get("body", b""))
        await self._writable.wait()
        if not message.get("more_body", False) and self.transport is not None:
            self.transport.close()


def head_of(status: int, headers: list[Header]) -> bytes:
    """Return the head of an answer; a status without a name, such as 499, has no phrase."""
    first = b"HTTP/1.1 %d %b" % (status, http.client.responses.get(status, "").encode())
    return b"\r\n".join([first, *(name + b": " + value for name, value in headers)]) + b"\r\n\r\n"
