"""The ASGI app of a runner: who may ask, the gateway's link, and what is at work."""

from __future__ import annotations

import asyncio
import functools
import hmac

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from fal_notebook.request_context import raw_headers
from fal_notebook.runner import logs
from fal_notebook.runner.caller import Callers
from fal_notebook.runner.link import Link
from fal_notebook.runner.refusals import error_response
from fal_notebook.runner.respond import Asked, Headers, request_id
from fal_notebook.runner.sendable import Sendable
from fal_notebook.runner.served import Served
from fal_notebook.runner.session import GOING_AWAY, Session
from fal_notebook.runner.spec import LINK, SECRET


class RunnerApp:
    """Dispatches requests to what is served; refuses every one without the runner's secret.

    Attributes
    ----------
    served : Served or None
        Set when the runner is ready.
    in_flight : int
        Requests at work.
    released : bool
        The gateway has sent its last request (``x-fal-link: end``).
    """

    def __init__(self, secret: str, link: Link) -> None:
        self._secret = secret.encode()
        self._link = link
        self.served: Served | None = None
        self.released = False
        self.in_flight = 0
        self._callers = Callers()
        self._sessions: dict[str, Session] = {}
        self._at_work: dict[str, asyncio.Event] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] not in ("http", "websocket"):
            return
        headers = dict(scope["headers"])
        secret = headers.pop(SECRET, b"")
        # All others are shown to the user's code, which may answer with them.
        scope["headers"] = [header for header in scope["headers"] if header[0] != SECRET]
        if not hmac.compare_digest(secret, self._secret):
            response: Response = error_response(403, "this runner answers its gateway only")
        elif headers.get(LINK) == b"states":
            await self._link.serve(receive, send)
            return
        elif LINK in headers:
            response = Response(status_code=await self._obey(headers))
        elif self.served is None:
            response = error_response(503, "this runner takes no requests now")
        else:
            await self._counted(self.served, scope, headers, receive, send)
            return
        await response(scope, receive, send)

    def has_socket(self, path: str) -> bool:
        """Say whether a path is a WebSocket."""
        return self.served is not None and self.served.socket(path) is not None

    async def end_sockets(self) -> None:
        """Close all WebSockets: the runner ends."""
        ends = [s.end(GOING_AWAY, "the runner ends") for s in self._sessions.values()]
        await asyncio.gather(*ends)

    async def _obey(self, headers: Headers) -> int:
        """Do what the gateway tells and return the status of the answer."""
        if headers[LINK] == b"end":
            self.released = True
        elif headers[LINK] == b"cancel":
            self._callers.cancel(request_id(headers))
        elif headers[LINK].startswith(b"close"):
            return await self._close(request_id(headers), headers[LINK][6:].decode("latin-1"))
        return 204

    async def _close(self, request: str, reason: str) -> int:
        """Wait until a request has ended, a WebSocket of which is closed; 503: end this runner."""
        session = self._sessions.get(request)
        closing = asyncio.ensure_future(_ended(session, reason))
        if request in self._at_work:
            await self._at_work[request].wait()
        closing.cancel()
        return 503 if session is not None and session.stop else 204

    async def _counted(
        self, served: Served, scope: Scope, headers: Headers, receive: Receive, send: Send
    ) -> None:
        scope["path"] = served.own_path(scope["path"])
        request = request_id(headers) or None
        logs.begin(request)
        raw_headers.set(scope["headers"])
        self.in_flight += 1
        ended = asyncio.Event()
        self._at_work.setdefault(request or "", ended)  # that of its cancel has the same id
        try:
            if scope["type"] == "websocket":
                await self._session(served, scope, receive, send, request or "")
                return
            response = await Asked(served, self._callers, scope, headers, receive).respond()
            logs.finish(request)  # who has the answer may ask for the lines at once
            if response is not None:
                send = self._telling(_hinting(served, send))
                failed = functools.partial(served.reports.failed, given=str)
                await response(scope, receive, Sendable(failed, scope, receive, send))
        finally:
            self.in_flight -= 1
            logs.end(request)
            ended.set()
            if self._at_work.get(request or "") is ended:
                del self._at_work[request or ""]

    def _telling(self, send: Send) -> Send:
        """Return a `send` before whose first message the gateway knows of failures."""

        async def telling(message: Message) -> None:
            if message.get("more_body"):  # a stream that never waits would hear of nothing
                await asyncio.sleep(0)
            if message["type"] == "http.response.start" and self._link.failures.waiting:
                await self._link.told()
            await send(message)

        return telling

    async def _session(
        self, served: Served, scope: Scope, receive: Receive, send: Send, request: str
    ) -> None:
        serve = served.socket(scope["path"])
        assert serve is not None
        session = Session(serve, served.workers, served.reports, scope, send)
        self._sessions[request] = session
        try:
            await session.run(receive)
        finally:
            del self._sessions[request]


async def _ended(session: Session | None, reason: str) -> None:
    if session is not None:
        await session.end(GOING_AWAY, reason)


def _hinting(served: Served, send: Send) -> Send:
    """Return a `send` that adds what the runner is good for, where the app says it."""
    if not served.own_hints:
        return send

    async def hinting(message: Message) -> None:
        hints = served.hints() if message["type"] == "http.response.start" else None
        if hints is not None:
            headers = [*message["headers"], (b"x-fal-runner-hints", hints.encode())]
            message = {**message, "headers": headers}
        await send(message)

    return hinting
