"""One request answered: JSON or pickled arguments in, a value, a stream or an error out."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Receive, Scope

from fal_notebook.app_exceptions import gpu_error
from fal_notebook.runner import frames, shown
from fal_notebook.runner.caller import LEFT, Stream
from fal_notebook.runner.escapes import contained
from fal_notebook.runner.refusals import (
    STOP,
    cancelled,
    invalid,
    is_refusal,
    refused,
    said_of_runner,
    status_of,
)
from fal_notebook.runner.response_values import closed_in_time, values_of
from fal_notebook.runner.results import Output
from fal_notebook.runner.route import Route
from fal_notebook.runner.workers import is_stream


@dataclass(frozen=True)
class Call:
    """A request whose body has been read."""

    scope: Scope
    body: bytes
    receive: Receive

    def replayed(self) -> Receive:
        """Return what gives the body once more, then what comes after it."""
        first = [{"type": "http.request", "body": self.body, "more_body": False}]

        async def receive() -> Message:
            return first.pop() if first else await self.receive()

        return receive

    def request(self) -> Request:
        """Return the request as an endpoint's parameter ``request: Request`` is given it."""
        return Request(self.scope, self.replayed())


def answer(route: Route, call: Call, pickled: bool) -> Awaitable[Response]:
    """Return what answers a request; with Python values when they came pickled."""
    return _pickled(route, call) if pickled else _json(route, call)


async def _json(route: Route, call: Call) -> Response:
    given = functools.partial(shown.body, call.body)
    try:
        args, kwargs = contained(route.signature.arguments, call.body)
    except ValidationError as error:
        return invalid(error, call.body, route.reports.redact)
    except Exception as error:  # of a validator of the user's
        return refused(route.reports, error, given)
    try:
        finish = functools.partial(_finished, route, call.scope)
        result = await route.call(args, _with_request(route, call, kwargs), finish)
    except Exception as error:
        return refused(route.reports, error, given)
    if is_stream(result):
        return streamed(route, route.signature.output, result, given)
    if isinstance(result, Response):
        failed = functools.partial(route.reports.failed, given=given)
        return closed_in_time(result, route.workers, failed)
    if route.as_event:
        return Response(b"data: " + result + b"\n\n", media_type="text/event-stream")
    return Response(result, media_type="application/json")


def _with_request(route: Route, call: Call, kwargs: dict[str, Any]) -> dict[str, Any]:
    name = route.signature.request
    return kwargs if name is None else {**kwargs, name: call.request()}


def _finished(route: Route, scope: Scope, result: Any) -> Any:
    if LEFT in scope:
        return cancelled()
    return result if isinstance(result, Response) else route.signature.output.to_json(result)


def streamed(route: Any, output: Output, generator: Any, given: Callable[[], str]) -> Response:
    """Return a generator's values as events; an error before the first is the answer itself."""
    content = _events(route, output, generator, given)
    refusing = functools.partial(refused, route.reports, given=given)
    return Stream(content, "text/event-stream", refusing)


async def _events(
    route: Any, output: Output, generator: Any, given: Callable[[], str]
) -> AsyncGenerator[bytes, None]:
    """Yield server-sent events; an error after the first can only be an event of its own."""
    began = False
    try:
        async with contextlib.aclosing(route.workers.values_of(generator)) as values:
            async for value in values:
                yield b"data: " + output.to_json(value) + b"\n\n"
                began = True
    except Exception as error:
        if not began:
            raise
        answer = refused(route.reports, error, given)
        told = {"status": answer.status_code, **json.loads(bytes(answer.body))}
        yield b"event: error\ndata: " + to_json(told) + b"\n\n"


async def _pickled(route: Route, call: Call) -> Response:
    given: Callable[[], str] = str
    headers = dict[str, str]()
    try:
        args, kwargs = frames.load_call(call.body)
        given = functools.partial(shown.call, args, kwargs)
        call = _as_json(route, call, args, kwargs)
        args, kwargs = contained(route.signature.python_arguments, args, kwargs)
        finish = functools.partial(_framed, route, call.scope, headers)
        result = await route.call(args, _with_request(route, call, kwargs), finish)
    except Exception as error:
        result = _raised(route, error, given)
        headers = frames.raised_headers(error, status_of(error))
        headers |= {STOP: "1"} if gpu_error(error) is not None else {}
    if isinstance(result, StreamingResponse):
        result = values_of(result, route.workers)
    if is_stream(result):
        return Stream(_frames(route, result, given), frames.CONTENT_TYPE)
    return Response(result, headers=headers, media_type=frames.CONTENT_TYPE)


def _framed(route: Route, scope: Scope, headers: dict[str, str], result: Any) -> Any:
    if LEFT in scope:
        return frames.returned(None)
    headers.update(said_of_runner(result))
    if isinstance(result, StreamingResponse):
        return result
    return route.signature.output.to_frame(frames.returned, result)


def _as_json(route: Route, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """Return the call as an endpoint that takes the request may read it: its body is JSON."""
    signature = route.signature
    if signature.request is None:
        return call
    try:
        body = signature.body(args, kwargs)
    except ValueError as error:
        if not signature.parameters:
            raise TypeError(
                f"`{route.name}` reads its request, and these arguments have no JSON form: {error}"
            ) from None
        body = b""
    told = [h for h in call.scope["headers"] if h[0] not in (b"content-type", b"content-length")]
    told += [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    return Call({**call.scope, "headers": told}, body, call.receive)


async def _frames(
    route: Route, generator: Any, given: Callable[[], str]
) -> AsyncGenerator[bytes, None]:
    try:
        yield frames.opened()
        async with contextlib.aclosing(route.workers.values_of(generator)) as values:
            async for value in values:
                yield route.signature.output.to_frame(frames.item, value)
        yield frames.returned(None)
    except Exception as error:
        yield _raised(route, error, given)


def _raised(route: Route, error: Exception, given: Callable[[], str]) -> bytes:
    """Return an error's frame; the app's own refusal of a request is no failure."""
    reports = route.reports
    text = reports.report(error) if is_refusal(error) else reports.failed(error, given)
    return frames.raised(error, text, reports.redact)
