"""The ASGI app of a runner: its routes, ``/openapi.json``, ``/health`` and the gateway's link."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable
from typing import Any

from pydantic_core import to_json
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from fal_notebook.request_context import raw_headers
from fal_notebook.runner import frames, logs
from fal_notebook.runner.answers import Call, answer
from fal_notebook.runner.fastapi_route import FastApiRoute
from fal_notebook.runner.link import Link, disconnected
from fal_notebook.runner.refusals import cancelled, error_response
from fal_notebook.runner.served import Served
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

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
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
            self._obey(headers)
            response = Response(status_code=204)
        elif self.served is None:
            response = error_response(503, "this runner takes no requests now")
        else:
            await self._counted(self.served, scope, headers, receive, send)
            return
        await response(scope, receive, send)

    def _obey(self, headers: Headers) -> None:
        """Do what the gateway tells: nothing comes any more, or one caller has gone."""
        if headers[LINK] == b"end":
            self.released = True
        elif headers[LINK] == b"cancel":
            _cancel(headers, self._callers)

    async def _counted(
        self, served: Served, scope: Scope, headers: Headers, receive: Receive, send: Send
    ) -> None:
        scope["path"] = served.own_path(scope["path"])
        request = _request_id(headers) or None
        logs.begin(request)
        raw_headers.set(scope["headers"])
        self.in_flight += 1
        try:
            response = await _respond(served, scope, headers, receive, self._callers)
            logs.finish(request)  # who has the answer may ask for the lines at once
            if response is not None:
                await response(scope, receive, _hinting(served, send))
        finally:
            self.in_flight -= 1
            logs.end(request)


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
    call = Call(scope, body, receive)
    if isinstance(route, FastApiRoute):
        return route.answer(call)
    pickled = headers.get(b"content-type") == frames.CONTENT_TYPE.encode()
    request = _request_id(headers)
    if not route.is_async:
        callers[request] = asyncio.get_running_loop().create_future()  # nobody looks at it
        work: Awaitable[Response] = answer(route, call, pickled)
    else:
        callers[request] = asyncio.ensure_future(disconnected(receive))
        work = _unless_gone(answer(route, call, pickled), callers[request])
    try:
        return await work
    finally:
        callers.pop(request, None)


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


async def _unless_gone(answer: Awaitable[Response], gone: asyncio.Future[None]) -> Response:
    """Cancel an async function when its caller goes away; a thread could not be stopped."""
    answering = asyncio.ensure_future(answer)
    try:
        await asyncio.wait((answering, gone), return_when=asyncio.FIRST_COMPLETED)
        if answering.done():
            return cancelled() if answering.cancelled() else answering.result()
        answering.cancel()
        await asyncio.wait((answering,))
        return cancelled()
    finally:
        gone.cancel()
        answering.cancel()
