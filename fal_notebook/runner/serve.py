"""The ASGI app of a runner: its routes, ``/openapi.json``, ``/health`` and the gateway's link."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hmac
from collections.abc import Iterator
from typing import Any

from pydantic_core import to_json
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from fal_notebook.request_context import raw_headers
from fal_notebook.runner import frames, logs
from fal_notebook.runner.answers import Call, answer
from fal_notebook.runner.caller import Caller
from fal_notebook.runner.fastapi_route import FastApiRoute
from fal_notebook.runner.link import Link
from fal_notebook.runner.refusals import cancelled, error_response
from fal_notebook.runner.route import Route
from fal_notebook.runner.served import Served
from fal_notebook.runner.session import GOING_AWAY, Session
from fal_notebook.runner.spec import LINK, SECRET

Headers = dict[bytes, bytes]


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
        self._callers: dict[str, asyncio.Future[None]] = {}
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
            _cancel(headers, self._callers)
        elif headers[LINK].startswith(b"close"):
            return await self._close(_request_id(headers), headers[LINK][6:].decode("latin-1"))
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
        request = _request_id(headers) or None
        logs.begin(request)
        raw_headers.set(scope["headers"])
        self.in_flight += 1
        ended = asyncio.Event()
        self._at_work.setdefault(request or "", ended)  # that of its cancel has the same id
        try:
            if scope["type"] == "websocket":
                await self._session(served, scope, receive, send, request or "")
                return
            response = await _respond(served, scope, headers, receive, self._callers)
            logs.finish(request)  # who has the answer may ask for the lines at once
            if response is not None:
                await response(scope, receive, _hinting(served, send))
        finally:
            self.in_flight -= 1
            logs.end(request)
            ended.set()
            if self._at_work.get(request or "") is ended:
                del self._at_work[request or ""]

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


def _request_id(headers: Headers) -> str:
    return headers.get(b"x-fal-request-id", b"").decode("latin-1")


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


async def _respond(
    served: Served,
    scope: Scope,
    headers: Headers,
    receive: Receive,
    callers: dict[str, asyncio.Future[None]],
) -> Any:
    """Return the response, None when the caller has gone before its request was read."""
    route = served.find(scope["path"])
    if route is None or scope["method"] != "POST":
        return await _other(served, scope, headers, callers)
    body = await _body(receive)
    if body is None:
        return None
    pickled = headers.get(b"content-type") == frames.CONTENT_TYPE.encode()
    request = _request_id(headers)
    if isinstance(route, FastApiRoute):
        return functools.partial(_from_fastapi, route, body, pickled, request, callers)
    if not route.is_async:
        nobody = asyncio.get_running_loop().create_future()  # a thread cannot be stopped
        with _known(callers, request, nobody):
            return await answer(route, Call(scope, body, receive), pickled)
    caller = Caller(receive)
    with _known(callers, request, caller.gone):
        return await _unless_gone(route, Call(scope, body, caller.receive), pickled, caller)


@contextlib.contextmanager
def _known(
    callers: dict[str, asyncio.Future[None]], request: str, gone: asyncio.Future[None]
) -> Iterator[None]:
    """Enter a request's caller; what its cancel route does meanwhile has the same id."""
    callers.setdefault(request, gone)
    try:
        yield
    finally:
        if callers.get(request) is gone:
            del callers[request]


async def _from_fastapi(
    route: FastApiRoute,
    body: bytes,
    pickled: bool,
    request: str,
    callers: dict[str, asyncio.Future[None]],
    scope: Scope,
    receive: Receive,
    send: Send,
) -> None:
    """Have FastAPI answer, unless the caller goes."""
    caller = Caller(receive)
    respond = route.answer(Call(scope, body, caller.receive), pickled)
    work = asyncio.ensure_future(respond(scope, caller.receive, send))
    try:
        with _known(callers, request, caller.gone):
            if await caller.outlasts(work, asks=True):
                work.result()
                return
        work.cancel()
        await asyncio.wait((work,))
        with contextlib.suppress(RuntimeError):  # the answer has begun
            await cancelled()(scope, receive, send)
    finally:
        caller.gone.cancel()
        work.cancel()


async def _other(
    served: Served, scope: Scope, headers: Headers, callers: dict[str, asyncio.Future[None]]
) -> Response:
    """Answer what is no call of a route."""
    path, method = scope["path"], scope["method"]
    if served.find(path) is not None and path != "/health":
        return error_response(405, "Method Not Allowed", {"allow": "POST"})
    if path == "/health":
        return await _health(served)
    if path == "/openapi.json":
        return Response(to_json(served.openapi()), media_type="application/json")
    if served.socket(path) is not None:
        detail = f"Path {path} is a WebSocket: ask for it with wss:// or ws://"
        return error_response(426, detail)
    base = served.own_path(path.removesuffix("/cancel") or "/")
    if method == "POST" and base != path and served.find(base) is not None:
        return _cancel(headers, callers)
    return error_response(404, f"Path {path} not found")


async def _health(served: Served) -> Response:
    try:
        content = to_json(await served.health(), fallback=str)
    except Exception as error:
        served.reports.report(error)
        return error_response(500, "the app's health() raised an error; its log has it")
    return Response(content, media_type="application/json")


def _cancel(headers: Headers, callers: dict[str, asyncio.Future[None]]) -> Response:
    """Let a request end as if its caller had gone; a thread could not be stopped."""
    caller = callers.get(_request_id(headers))
    if caller is None:
        return error_response(404, "no such request is at work here")
    caller.cancel()
    return Response(status_code=202)


async def _body(receive: Receive) -> bytes | None:
    chunks = []
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        chunks.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(chunks)


async def _unless_gone(route: Route, call: Call, pickled: bool, caller: Caller) -> Response:
    """Cancel an async function when its caller goes away; a thread could not be stopped."""
    answering = asyncio.ensure_future(answer(route, call, pickled))
    try:
        if await caller.outlasts(answering, asks=route.signature.request is not None):
            return cancelled() if answering.cancelled() else answering.result()
        answering.cancel()
        await asyncio.wait((answering,))
        return cancelled()
    finally:
        caller.gone.cancel()
        answering.cancel()
