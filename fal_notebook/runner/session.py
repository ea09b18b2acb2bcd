"""One WebSocket at work: what passes between caller and handler, and how either of them leaves."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable

from starlette.exceptions import WebSocketException
from starlette.types import Message, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from fal_notebook.app_exceptions import gpu_error
from fal_notebook.runner import shown
from fal_notebook.runner.refusals import refused
from fal_notebook.runner.reports import Reports
from fal_notebook.runner.workers import Workers

# So many messages are read ahead: that the caller has gone is seen behind them.
AHEAD = 16
# Code that does not look at its socket is cancelled so long after that was closed (seconds).
LEAVE = 0.5
# A close frame holds no longer reason (RFC 6455, 5.5).
LONGEST_REASON = 123
GOING_AWAY, FAILED = 1001, 1011

_ENDS = ("websocket.close", "websocket.http.response.start")

Serve = Callable[[WebSocket], Awaitable[None]]


class Session:
    """One WebSocket, from its request to its close.

    Its caller's messages are read ahead, so that it is seen when the caller goes away: who waits
    for a message then hears of it (`WebSocketDisconnect`), any other code is cancelled.

    Attributes
    ----------
    stop : bool
        It failed so that the runner is of no use any more.
    """

    def __init__(
        self, serve: Serve, workers: Workers, reports: Reports, scope: Scope, send: Send
    ) -> None:
        self._serve = serve
        self._workers = workers
        self._reports = reports
        self._send = send
        self._socket = WebSocket(scope, self._next, self._sent)
        self._messages: asyncio.Queue[Message] = asyncio.Queue()
        self._room = asyncio.Semaphore(AHEAD)
        self._newest: bytes = b""
        self._accepted = self._closed = self._left = self._heard = False
        self._work: asyncio.Task[None] | None = None
        self.stop = False

    async def run(self, receive: Receive) -> None:
        """Serve until the handler has ended, whatever became of its caller."""
        reading = asyncio.ensure_future(self._read(receive))
        self._work = asyncio.ensure_future(self._handle())
        try:
            await asyncio.wait([self._work])
            await self._close(1000, "")
        finally:
            reading.cancel()
            self._work.cancel()

    async def end(self, code: int, reason: str) -> None:
        """Close the socket from our side; its handler is told as if its caller had gone."""
        self._leave({"type": "websocket.disconnect", "code": code, "reason": reason})
        await self._close(code, reason)

    # --- the handler -------------------------------------------------------------------------
    async def _handle(self) -> None:
        try:
            async with self._workers.slot:
                await self._workers.run(self._serve, (self._socket,))
        except WebSocketDisconnect:
            return
        except Exception as error:
            await self._failed(error)

    async def _failed(self, error: Exception) -> None:
        """Answer what a request would be answered, or close with it."""
        if isinstance(error, WebSocketException):
            await self._close(error.code, self._reports.redact(error.reason))
            return
        self.stop = gpu_error(error) is not None
        given = self._socket.scope.get("fal_given", lambda: shown.body(self._newest))
        answer = refused(self._reports, error, given)
        if self._accepted:
            await self._close(FAILED, str(json.loads(bytes(answer.body))["detail"]))
        elif not self._left:
            with contextlib.suppress(OSError, RuntimeError):
                await self._socket.send_denial_response(answer)

    # --- what passes -------------------------------------------------------------------------
    async def _read(self, receive: Receive) -> None:
        while True:
            await self._room.acquire()
            message = await receive()
            if message["type"] == "websocket.disconnect":
                self._leave(message)
                return
            self._messages.put_nowait(message)

    async def _next(self) -> Message:
        message = await self._messages.get()
        self._room.release()
        self._heard = self._heard or message["type"] == "websocket.disconnect"
        if message["type"] == "websocket.receive":
            self._newest = message.get("bytes") or (message.get("text") or "").encode()
        return message

    async def _sent(self, message: Message) -> None:
        await asyncio.sleep(0)  # code that only sends would hear of nothing
        if self._left:
            self._heard = True
            raise OSError("the caller has gone")
        self._accepted |= message["type"] == "websocket.accept"
        self._closed |= message["type"] in _ENDS
        await self._send(message)

    async def _close(self, code: int, reason: str) -> None:
        """Close once; before the socket is accepted that is an answer of its own, 403."""
        if self._closed:
            return
        self._closed = True
        cut = reason.encode()[:LONGEST_REASON].decode(errors="ignore")
        with contextlib.suppress(OSError, RuntimeError):
            await self._send({"type": "websocket.close", "code": code, "reason": cut})

    def _leave(self, message: Message) -> None:
        """Tell the handler that its caller has gone; cancel it unless it hears of that soon."""
        if self._left:
            return
        self._left = True
        self._messages.put_nowait(message)
        asyncio.get_running_loop().call_later(LEAVE, self._cancel)

    def _cancel(self) -> None:
        if self._work is not None and not self._heard:
            self._work.cancel()
