"""The ASGI app of a runner: ``POST /``, ``/openapi.json``, ``/health`` and the gateway's link."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.responses import Response, StreamingResponse

from fal_notebook.runner import frames, logs
from fal_notebook.runner.function import Function

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Link:
    """The runner's states, replayed to every gateway that connects, then followed live."""

    def __init__(self) -> None:
        self.states: list[dict[str, Any]] = []
        self.gateways = 0
        self.last_seen = time.monotonic()
        self._changed = asyncio.Event()

    def publish(self, state: str, **details: Any) -> None:
        """Enter a state and tell every connected gateway."""
        self.states.append({"state": state, **details})
        self._changed.set()

    async def follow(self) -> AsyncIterator[bytes]:
        """Yield each state as one JSON line, for ever; counts as a gateway while it runs."""
        self.gateways += 1
        try:
            sent = 0
            while True:
                self._changed.clear()
                for state in self.states[sent:]:
                    yield json.dumps(state).encode() + b"\n"
                sent = len(self.states)
                await self._changed.wait()
        finally:
            self.gateways -= 1
            self.last_seen = time.monotonic()


class RunnerApp:
    """Dispatches requests to the function; refuses every one without the runner's secret."""

    def __init__(self, secret: str, link: Link) -> None:
        self._secret = secret.encode()
        self._link = link
        self.function: Function | None = None
        self.draining = False
        self.in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return
        headers = dict(scope["headers"])
        if not hmac.compare_digest(headers.get(b"x-fal-runner-secret", b""), self._secret):
            response: Response = _error(403, "this runner answers its gateway only")
        elif scope["path"] == "/_fal/link":
            response = StreamingResponse(self._link.follow(), media_type="application/x-ndjson")
        elif self.function is None or self.draining:
            response = _error(503, "this runner takes no requests now")
        else:
            await self._counted(self.function, scope, headers, receive, send)
            return
        await response(scope, receive, send)

    async def _counted(
        self,
        function: Function,
        scope: Scope,
        headers: dict[bytes, bytes],
        receive: Receive,
        send: Send,
    ) -> None:
        request = headers.get(b"x-fal-request-id", b"").decode("latin-1") or None
        logs.request_id.set(request)
        self.in_flight += 1
        try:
            response = await _respond(function, scope, headers, receive)
            await response(scope, receive, send)
        finally:
            self.in_flight -= 1
            logs.finish(request)


async def _respond(
    function: Function, scope: Scope, headers: dict[bytes, bytes], receive: Receive
) -> Response:
    path, method = scope["path"], scope["method"]
    if path == "/health":
        return Response(b'{"status":"ok"}', media_type="application/json")
    if path == "/openapi.json":
        return Response(json.dumps(function.openapi()), media_type="application/json")
    if path != "/":
        return _error(404, f"Path {path} not found")
    if method != "POST":
        return _error(405, "Method Not Allowed", {"allow": "POST"})
    body = await _body(receive)
    if headers.get(b"content-type") == frames.CONTENT_TYPE.encode():
        return await _call_pickled(function, body)
    return await _call_json(function, body)


async def _body(receive: Receive) -> bytes:
    chunks = []
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise asyncio.CancelledError
        chunks.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(chunks)


async def _call_json(function: Function, body: bytes) -> Response:
    try:
        arguments = function.signature.arguments(body)
    except ValidationError as error:
        return _invalid(error)
    if function.streams:
        return StreamingResponse(_events(function, arguments), media_type="text/event-stream")
    try:
        result = await function.call((), arguments)
        if isinstance(result, Response):
            return result
        return Response(_serialise(function, result), media_type="application/json")
    except HTTPException as error:
        return _error(error.status_code, error.detail, dict(error.headers or {}))
    except Exception:
        traceback.print_exc()
        return _error(500, "Internal Server Error", {"x-fal-error-type": "runner_server_error"})


async def _events(function: Function, arguments: dict[str, Any]) -> AsyncIterator[bytes]:
    """Yield server-sent events; an error after the first byte can only be an event of its own."""
    try:
        async with contextlib.aclosing(function.stream((), arguments)) as values:
            async for value in values:
                yield b"data: " + _serialise(function, value) + b"\n\n"
    except Exception:
        traceback.print_exc()
        yield b'event: error\ndata: {"detail": "Internal Server Error"}\n\n'


async def _call_pickled(function: Function, body: bytes) -> Response:
    return StreamingResponse(_frames(function, body), media_type=frames.CONTENT_TYPE)


async def _frames(function: Function, body: bytes) -> AsyncIterator[bytes]:
    try:
        args, kwargs = frames.load_call(body)
        if function.streams:
            yield frames.opened()
            async with contextlib.aclosing(function.stream(args, kwargs)) as values:
                async for value in values:
                    yield frames.item(value)
            yield frames.returned(None)
        else:
            yield frames.returned(await function.call(args, kwargs))
    except Exception as error:
        traceback.print_exc()
        yield frames.raised(error)


def _serialise(function: Function, value: Any) -> bytes:
    """Return JSON by the return annotation; arrays become lists.

    Raises
    ------
    pydantic_core.PydanticSerializationError
        When the value has no JSON form; it names the type.
    """
    return function.signature.output.dump_json(value, fallback=_plain, warnings=False)


def _plain(value: Any) -> Any:
    for method in ("tolist", "model_dump", "to_dict"):
        if hasattr(value, method):
            return getattr(value, method)()
    raise TypeError(
        f"a {type(value).__qualname__} has no JSON form; return plain data or a pydantic model"
    )


def _invalid(error: ValidationError) -> Response:
    """Return 422 in FastAPI's shape: a list of errors whose `loc` begins with ``body``."""
    detail = [
        {**item, "loc": ("body", *item["loc"])}
        for item in error.errors(include_url=False, include_context=True)
    ]
    body = to_json({"detail": detail}, fallback=str)
    return Response(body, status_code=422, media_type="application/json")


def _error(status: int, detail: Any, headers: dict[str, str] | None = None) -> Response:
    body = json.dumps({"detail": detail})
    return Response(body, status_code=status, headers=headers, media_type="application/json")
