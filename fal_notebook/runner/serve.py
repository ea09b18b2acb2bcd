"""The ASGI app of a runner: ``POST /``, ``/openapi.json``, ``/health`` and the gateway's link."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hmac
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from pydantic import ValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from fal_notebook.runner import frames, logs, shown
from fal_notebook.runner.failures import Failures
from fal_notebook.runner.function import Function, is_stream
from fal_notebook.runner.spec import LINK


class Link:
    """The runner's states, replayed to every gateway that connects, then followed live.

    Failures of requests are told to one gateway, once.
    """

    def __init__(self) -> None:
        self.states: list[dict[str, Any]] = []
        self.gateways = 0
        self.last_seen = time.monotonic()
        self._changed = asyncio.Event()
        self.failures = Failures(self._changed.set)

    def publish(self, state: str, **details: Any) -> None:
        """Enter a state and tell every connected gateway."""
        self.states.append({"state": state, **details})
        self._changed.set()

    async def serve(self, receive: Receive, send: Send) -> None:
        """Send each state and failure as one JSON line until the gateway goes away."""
        self.gateways += 1
        gone = asyncio.ensure_future(disconnected(receive))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            sent = 0
            while not gone.done():
                self._changed.clear()
                lines = self.states[sent:] + [{"error": x} for x in self.failures.take()]
                sent = len(self.states)
                for line in lines:
                    data = json.dumps(line).encode() + b"\n"
                    await send({"type": "http.response.body", "body": data, "more_body": True})
                changed = asyncio.ensure_future(self._changed.wait())
                await asyncio.wait((gone, changed), return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
        finally:
            gone.cancel()
            self.gateways -= 1
            self.last_seen = time.monotonic()


async def disconnected(receive: Receive) -> None:
    """Return when the other side closes the connection; its request has been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


class RunnerApp:
    """Dispatches requests to the function; refuses every one without the runner's secret.

    Attributes
    ----------
    function : Function or None
        Set when the runner is ready.
    in_flight : int
        Requests at work.
    released : bool
        The gateway has sent its last request (``x-fal-link: end``).
    """

    def __init__(self, secret: str, link: Link) -> None:
        self._secret = secret.encode()
        self._link = link
        self.function: Function | None = None
        self.released = False
        self.in_flight = 0
        self._callers: dict[str, asyncio.Future[None]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return
        headers = dict(scope["headers"])
        if not hmac.compare_digest(headers.get(b"x-fal-runner-secret", b""), self._secret):
            response: Response = _error(403, "this runner answers its gateway only")
        elif headers.get(LINK) == b"states":
            await self._link.serve(receive, send)
            return
        elif LINK in headers:
            self._obey(headers)
            response = Response(status_code=204)
        elif self.function is None:
            response = _error(503, "this runner takes no requests now")
        else:
            await self._counted(self.function, scope, headers, receive, send)
            return
        await response(scope, receive, send)

    def _obey(self, headers: dict[bytes, bytes]) -> None:
        """Do what the gateway tells: nothing comes any more, or one caller has gone."""
        if headers[LINK] == b"end":
            self.released = True
        elif headers[LINK] == b"cancel":
            _cancel(headers, self._callers)

    async def _counted(
        self,
        function: Function,
        scope: Scope,
        headers: dict[bytes, bytes],
        receive: Receive,
        send: Send,
    ) -> None:
        request = headers.get(b"x-fal-request-id", b"").decode("latin-1") or None
        logs.begin(request)
        self.in_flight += 1
        try:
            response = await _respond(function, scope, headers, receive, self._callers)
            logs.finish(request)  # who has the answer may ask for the lines at once
            if response is not None:
                await response(scope, receive, send)
        finally:
            self.in_flight -= 1
            logs.end(request)


async def _respond(
    function: Function,
    scope: Scope,
    headers: dict[bytes, bytes],
    receive: Receive,
    callers: dict[str, asyncio.Future[None]],
) -> Response | None:
    """Return the response, None when the caller has gone before its request was read."""
    path, method = scope["path"], scope["method"]
    if path == "/health":
        return Response(b'{"status":"ok"}', media_type="application/json")
    if path == "/openapi.json":
        return Response(to_json(function.openapi()), media_type="application/json")
    if (method, path) == ("POST", "/cancel"):
        return _cancel(headers, callers)
    if path != "/":
        return _error(404, f"Path {path} not found")
    if method != "POST":
        return _error(405, "Method Not Allowed", {"allow": "POST"})
    body = await _body(receive)
    if body is None:
        return None
    answer = _pickled if headers.get(b"content-type") == frames.CONTENT_TYPE.encode() else _json
    request = headers.get(b"x-fal-request-id", b"").decode("latin-1")
    if not function.is_async:
        callers[request] = asyncio.get_running_loop().create_future()  # nobody looks at it
        work: Awaitable[Response] = answer(function, body)
    else:
        callers[request] = asyncio.ensure_future(disconnected(receive))
        work = _unless_gone(answer(function, body), callers[request])
    try:
        return await work
    finally:
        callers.pop(request, None)


def _cancel(headers: dict[bytes, bytes], callers: dict[str, asyncio.Future[None]]) -> Response:
    """Let a request end as if its caller had gone; a thread could not be stopped."""
    caller = callers.get(headers.get(b"x-fal-request-id", b"").decode("latin-1"))
    if caller is None:
        return _error(404, "no such request is at work here")
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
            return answering.result()
        answering.cancel()
        await asyncio.wait((answering,))
        return _cancelled()
    finally:
        gone.cancel()
        answering.cancel()


def _cancelled() -> Response:
    """Return fal's answer to who cancelled; whoever has gone does not see it."""
    kind = "client_cancelled"
    body = to_json({"detail": "the request was cancelled", "error_type": kind})
    headers = {"x-fal-error-type": kind}
    return Response(body, status_code=499, headers=headers, media_type="application/json")


async def _json(function: Function, body: bytes) -> Response:
    try:
        args, kwargs = function.signature.arguments(body)
    except ValidationError as error:
        return _invalid(error)
    given = functools.partial(shown.body, body)
    try:
        result = await function.call(args, kwargs, functools.partial(_finished, function))
    except HTTPException as error:
        if error.status_code >= 500:
            function.failed(error, given, log=False)
        return _error(error.status_code, error.detail, dict(error.headers or {}))
    except Exception as error:
        function.failed(error, given)
        return _error(500, "Internal Server Error", {"x-fal-error-type": "runner_server_error"})
    if is_stream(result):
        return StreamingResponse(_events(function, result, given), media_type="text/event-stream")
    if isinstance(result, Response):
        return result
    return Response(result, media_type="application/json")


def _finished(function: Function, result: Any) -> Any:
    return result if isinstance(result, Response) else function.signature.output.to_json(result)


async def _events(
    function: Function, generator: Any, given: Callable[[], str]
) -> AsyncIterator[bytes]:
    """Yield server-sent events; an error after the first byte can only be an event of its own."""
    try:
        async with contextlib.aclosing(function.values_of(generator)) as values:
            async for value in values:
                yield b"data: " + function.signature.output.to_json(value) + b"\n\n"
    except Exception as error:
        function.failed(error, given)
        yield b'event: error\ndata: {"detail": "Internal Server Error"}\n\n'


async def _pickled(function: Function, body: bytes) -> Response:
    given: Callable[[], str] = str
    headers = {}
    try:
        args, kwargs = frames.load_call(body)
        given = functools.partial(shown.call, args, kwargs)
        finish = functools.partial(function.signature.output.to_frame, frames.returned)
        result = await function.call(args, kwargs, finish)
    except Exception as error:
        result = _raised(function, error, given)
        headers = {frames.RAISED: type(error).__name__.encode("ascii", "replace").decode()}
    if is_stream(result):
        return StreamingResponse(_frames(function, result, given), media_type=frames.CONTENT_TYPE)
    return Response(result, headers=headers, media_type=frames.CONTENT_TYPE)


async def _frames(
    function: Function, generator: Any, given: Callable[[], str]
) -> AsyncIterator[bytes]:
    try:
        yield frames.opened()
        async with contextlib.aclosing(function.values_of(generator)) as values:
            async for value in values:
                yield function.signature.output.to_frame(frames.item, value)
        yield frames.returned(None)
    except Exception as error:
        yield _raised(function, error, given)


def _raised(function: Function, error: Exception, given: Callable[[], str]) -> bytes:
    """Return an error's frame; the app's own refusal of a request is no failure."""
    refusal = isinstance(error, HTTPException) and error.status_code < 500
    text = function.report(error) if refusal else function.failed(error, given)
    return frames.raised(error, text)


def _invalid(error: ValidationError) -> Response:
    """Return 422 in FastAPI's shape: a list of errors whose `loc` begins with ``body``."""
    detail = [
        {**item, "loc": ("body", *item["loc"]), "input": _shown(item)}
        for item in error.errors(include_url=False, include_context=True)
    ]
    return _error(422, detail)


def _shown(error: Any) -> Any:
    """Return the input to show: as in FastAPI, none when the body is no JSON at all."""
    return {} if error["type"] == "json_invalid" else error["input"]


def _error(status: int, detail: Any, headers: dict[str, str] | None = None) -> Response:
    body = to_json({"detail": detail}, fallback=str, inf_nan_mode="null")
    return Response(body, status_code=status, headers=headers, media_type="application/json")
