"""Requests of a widget that come over its comm, where the page has no other way to the gateway.

The browser sends ``request`` (id, method, path, headers, size), then the body as ``body`` in
pieces. It is answered with ``head`` (status, headers), then with a ``piece`` for each ``more``, and
``end``; or with ``failed`` (message). ``cancel`` ends it. Pieces are at most 1 MiB: more than
10 MiB in one message would cut the browser off from its kernel.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Sequence
from typing import Any

from fal_notebook import sync
from fal_notebook.exceptions import FalNotebookError
from fal_notebook.handle import shared_client

PIECE = 1024 * 1024
# A body of more has no business on this way (bytes).
LARGEST = 512 * PIECE

Send = Callable[..., None]


class CommRelay:
    """Hands requests of one widget to the gateway; `send` sends a message with its buffers."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._requests: dict[str, _Request] = {}

    def receive(self, message: Any, buffers: Sequence[Any]) -> None:
        """Take a message of the browser; what is none of ours is ignored."""
        if isinstance(message, dict) and isinstance(message.get("id"), str):
            sync.submit(self._receive(message, b"".join(map(bytes, buffers))))

    def close(self) -> None:
        """End what is under way: nobody is there any more."""
        sync.submit(self._close())

    async def _close(self) -> None:
        for request in list(self._requests.values()):
            request.cancel()

    async def _receive(self, message: dict[str, Any], piece: bytes) -> None:
        identity, kind = message["id"], message.get("op")
        if kind == "request":
            over = functools.partial(self._requests.pop, identity, None)
            self._requests[identity] = _Request(message, self._send, over)
        request = self._requests.get(identity)
        if request is None:
            return
        if kind == "more":
            request.wanted.release()
        elif kind == "cancel":
            request.cancel()
        else:
            request.add(piece)


class _Request:
    """One request: begun when its body is there, answered as fast as the browser takes it."""

    def __init__(self, message: dict[str, Any], send: Send, over: Callable[[], Any]) -> None:
        self.wanted = asyncio.Semaphore(0)
        self._message = message
        self._send = send
        self._over = over
        self._body = bytearray()
        self._task: asyncio.Task[None] | None = None

    def add(self, piece: bytes) -> None:
        """Take a piece of the body; the last one begins the request."""
        self._body += piece
        if self._task is None and len(self._body) >= min(self._message.get("size", 0), LARGEST):
            self._task = asyncio.get_running_loop().create_task(self._answer())

    def cancel(self) -> None:
        """End it."""
        if self._task is None:
            self._over()
        else:
            self._task.cancel()

    async def _answer(self) -> None:
        try:
            await self._relayed()
        except FalNotebookError as error:
            self._tell("failed", message=str(error))
        finally:
            self._over()

    async def _relayed(self) -> None:
        told = self._message
        sent = {"headers": told.get("headers") or {}, "content": bytes(self._body)}
        async with shared_client().open(told["method"], told["path"], **sent) as answer:
            self._tell("head", status=answer.status_code, headers=dict(answer.headers))
            async for piece in answer.aiter_bytes():
                for at in range(0, len(piece), PIECE):
                    await self.wanted.acquire()
                    self._tell("piece", [piece[at : at + PIECE]])
        await self.wanted.acquire()
        self._tell("end")

    def _tell(self, kind: str, pieces: Sequence[bytes] = (), **content: Any) -> None:
        self._send({"op": kind, "id": self._message["id"], **content}, list(pieces))
