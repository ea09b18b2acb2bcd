"""A handle's call of an endpoint that FastAPI serves: Python values into a request, and back."""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from starlette.responses import Response, StreamingResponse
from starlette.routing import replace_params
from starlette.types import Message, Receive, Scope, Send

from fal_notebook.app_exceptions import gpu_error
from fal_notebook.exceptions import RemoteError
from fal_notebook.runner import frames, shown
from fal_notebook.runner.caller import Stream
from fal_notebook.runner.refusals import STOP, is_refusal, said_of_runner, status_of
from fal_notebook.runner.response_values import values_of

if TYPE_CHECKING:
    from fal_notebook.runner.fastapi_route import FastApiRoute

# Under this name the scope holds a list that gets the function's result or error.
OUTCOME = "fal_outcome"


class PythonCall:
    """One call: an ASGI app that has FastAPI answer, and sends what the function gave.

    Parameters
    ----------
    body : bytes
        Pickled arguments, see `frames`.
    """

    def __init__(self, route: FastApiRoute, body: bytes) -> None:
        self._route = route
        self._body = body
        self._given: Callable[[], str] = str

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        try:
            asked, content = self._request(scope)
        except Exception as error:
            await self._raised(error)(scope, receive, send)
            return
        told = bytearray()
        start: dict[str, Any] = {}

        async def framed(message: Message) -> None:
            """Send the outcome when FastAPI's answer is complete; background tasks come after."""
            start.update(message if message["type"] == "http.response.start" else {})
            told.extend(message.get("body", b""))
            if message["type"] == "http.response.body" and not message.get("more_body"):
                answer = self._answer(asked[OUTCOME], start["status"], bytes(told))
                await answer(scope, receive, send)

        with contextlib.suppress(Exception):  # the route's own handler has told of it
            await self._route.app(asked, _replayed(content, receive), framed)

    # --- in ----------------------------------------------------------------------------------
    def _request(self, scope: Scope) -> tuple[dict[str, Any], bytes]:
        """Return the request of which FastAPI reads the arguments."""
        args, kwargs = frames.load_call(self._body)
        self._given = functools.partial(shown.call, args, kwargs)
        places = self._route.places
        values = places.bound(args, kwargs)
        content = places.body(values)
        headers = [h for h in scope["headers"] if h[0] not in (b"content-type", b"content-length")]
        headers += [*places.headers(values), (b"content-type", b"application/json")]
        path = scope["path"]
        if path == self._route.path:
            path, _ = replace_params(self._route.path_format, self._route.in_path, values["path"])
        query = urlencode(values["query"], doseq=True).encode() or scope["query_string"]
        asked = {**scope, "headers": headers, "path": path, "query_string": query, OUTCOME: []}
        return asked, content

    # --- out ---------------------------------------------------------------------------------
    def _answer(self, outcome: list[Any], status: int, content: bytes) -> Response:
        if not outcome:  # FastAPI or a dependency has refused the request
            return self._raised(RemoteError(f"{status}: {_detail(content)}"), status)
        (result,) = outcome
        if isinstance(result, Exception):
            return self._raised(result)
        if isinstance(result, StreamingResponse):
            result = values_of(result, self._route.workers)
        if inspect.isgenerator(result) or inspect.isasyncgen(result):
            return Stream(self._frames(result), frames.CONTENT_TYPE)
        try:
            content = self._route.output.to_frame(frames.returned, result)
        except TypeError as error:
            return self._raised(error)
        return Response(content, headers=said_of_runner(result), media_type=frames.CONTENT_TYPE)

    async def _frames(self, generator: Any) -> AsyncGenerator[bytes, None]:
        try:
            yield frames.opened()
            async with contextlib.aclosing(self._route.workers.values_of(generator)) as values:
                async for value in values:
                    yield self._route.output.to_frame(frames.item, value)
            yield frames.returned(None)
        except Exception as error:
            yield self._frame_of(error)

    def _raised(self, error: Exception, status: int = 0) -> Response:
        """Return an error's answer; with a status it is FastAPI's refusal, of which none tells."""
        content = frames.raised(error, "") if status else self._frame_of(error)
        headers = frames.raised_headers(error, status or status_of(error))
        headers |= {STOP: "1"} if gpu_error(error) is not None else {}
        return Response(content, headers=headers, media_type=frames.CONTENT_TYPE)

    def _frame_of(self, error: Exception) -> bytes:
        reports = self._route.reports
        report = reports.report(error) if is_refusal(error) else reports.failed(error, self._given)
        return frames.raised(error, report, reports.redact)


def _detail(content: bytes) -> Any:
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return json.loads(content)["detail"]
    return content.decode(errors="replace")


def _replayed(content: bytes, receive: Receive) -> Receive:
    first: list[Message] = [{"type": "http.request", "body": content, "more_body": False}]

    async def replayed() -> Message:
        return first.pop() if first else await receive()

    return replayed
