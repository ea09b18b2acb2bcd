"""Who waits for an answer: that he has gone is told to the runner, and to code that asks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any

from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from fal_notebook.runner.link import disconnected
from fal_notebook.runner.runs import Runs

# Code that can ask has so long to hear that its caller has gone, before it is cancelled (seconds).
LEAVE = 0.5
# What is true in a request's scope once its code has left a block because the caller had gone:
# then nothing is wrong with what it returns, which nobody reads.
LEFT = "fal_notebook.left"


class Caller:
    """A caller whose request has been read.

    Attributes
    ----------
    gone : asyncio.Future
        Done when the caller has gone; cancelled when the gateway says so.
    heard : bool
        The app was told by `receive`.
    """

    def __init__(self, receive: Receive) -> None:
        self.gone: asyncio.Future[None] = asyncio.ensure_future(disconnected(receive))
        self.heard = False

    async def receive(self) -> Message:
        """Return when the caller has gone, as ASGI says it."""
        if not self.gone.done():
            await asyncio.wait((self.gone,))
        self.heard = True
        return {"type": "http.disconnect"}

    async def outlasts(self, work: asyncio.Future[Any], asks: bool) -> bool:
        """Wait for `work`; return False when its caller goes first and it has to be cancelled.

        `asks` says that the app may hear of it, and then ends by itself.
        """
        await asyncio.wait((work, self.gone), return_when=asyncio.FIRST_COMPLETED)
        if not work.done() and asks:
            await asyncio.wait((work,), timeout=LEAVE)
        if not work.done() and self.heard:
            await asyncio.wait((work,))
        return work.done()


class Callers:
    """Who waits for each request at work, by the request's id.

    Attributes
    ----------
    runs : Runs
        Those of them that are at work in threads.
    """

    def __init__(self) -> None:
        self.runs = Runs()
        self._gone: dict[str, asyncio.Future[None]] = {}

    @contextlib.contextmanager
    def known(self, request: str, gone: asyncio.Future[None]) -> Iterator[None]:
        """Enter a request's caller; what its cancel route does meanwhile has the same id."""
        self._gone.setdefault(request, gone)
        try:
            yield
        finally:
            if self._gone.get(request) is gone:
                del self._gone[request]

    def cancel(self, request: str) -> None:
        """Let a request end, for its caller has gone; a thread does not."""
        if (gone := self._gone.get(request)) is not None:
            gone.cancel()


class CutError(Exception):
    """The answer ends here, before its end: what failed has been told."""


class Stream(Response):
    """A stream that ends when its caller goes; its generator is closed before it has ended.

    Starlette's own would cancel without end, also what waits for a thread.

    Parameters
    ----------
    refused : callable, optional
        Makes the answer of what is raised before the first bytes; the head is not sent before.
    """

    @classmethod
    def of(cls, response: StreamingResponse, content: AsyncGenerator[bytes, None]) -> Stream:
        """Return a stream of the user's, whose `content` is closed too; its head goes at once."""
        stream = cls(content, None)
        stream.status_code, stream.raw_headers = response.status_code, response.raw_headers
        stream.background = response.background
        stream._at_once = True
        return stream

    def __init__(
        self,
        content: AsyncGenerator[bytes, None],
        media_type: str | None,
        refused: Callable[[Exception], Response] | None = None,
    ) -> None:
        self._content = content
        self._refused = refused
        self._at_once = False
        self.status_code, self.media_type, self.background = 200, media_type, None
        self.init_headers()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        sending = asyncio.ensure_future(self._send(scope, receive, send))
        gone = asyncio.ensure_future(disconnected(receive))
        try:
            await asyncio.wait((sending, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            sending.cancel()
            await asyncio.wait((sending,))
            await self._content.aclose()
        if not sending.cancelled():
            with contextlib.suppress(CutError):
                sending.result()
        if self.background is not None:
            await self.background()

    async def _send(self, scope: Scope, receive: Receive, send: Send) -> None:
        head = {"status": self.status_code, "headers": self.raw_headers}
        start = {"type": "http.response.start", **head}
        if self._at_once:
            await send(start)
        try:
            chunk = await anext(self._content, None)
        except Exception as error:
            if self._refused is None:
                raise
            await self._refused(error)(scope, receive, send)
            return
        if not self._at_once:
            await send(start)
        while chunk is not None:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
            chunk = await anext(self._content, None)
        await send({"type": "http.response.body", "body": b"", "more_body": False})
