"""An endpoint whose signature holds more than a body: FastAPI serves it, and is imported for it."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Annotated, Any, get_args, get_origin

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import compile_path
from starlette.types import Receive, Scope, Send

from fal_notebook.annotations import is_class_of
from fal_notebook.exceptions import AppDefinitionError
from fal_notebook.runner import shown
from fal_notebook.runner.answers import Call, streamed
from fal_notebook.runner.caller import LEFT
from fal_notebook.runner.failures import defined_at, placed
from fal_notebook.runner.fastapi_call import OUTCOME, PythonCall
from fal_notebook.runner.fastapi_places import GIVEN, Places, is_model_or_request, of_fastapi
from fal_notebook.runner.refusals import cancelled, error_response, refused
from fal_notebook.runner.reports import Reports
from fal_notebook.runner.response_values import closed_in_time
from fal_notebook.runner.results import output_of
from fal_notebook.runner.schema import item_type, streams
from fal_notebook.runner.workers import Workers, is_stream

_empty = inspect.Signature.empty
_OLDEST = (0, 115)  # FastAPI's version that this is tried with


class FastApiRoute:
    """A FastAPI app with the one route; the function itself runs where all others do.

    Parameters
    ----------
    as_event : bool
        A result that is no stream is sent as its only event.
    aside : bool
        It waits for no slot, as a `Route` does.
    """

    is_async = True
    streams = False

    def __init__(
        self,
        name: str,
        path: str,
        function: Callable[..., Any],
        hints: Mapping[str, Any],
        workers: Workers,
        reports: Reports,
        as_event: bool = False,
        aside: bool = False,
    ) -> None:
        from fastapi import FastAPI
        from fastapi.exceptions import RequestValidationError

        _refuse_old_fastapi()
        self._as_event, self._function, self._hints = as_event, function, hints
        self._aside = aside
        self.name = name
        self.path = path
        self.reports = reports
        self.workers = workers
        self._place = defined_at(function)
        self._template, self.path_format, self.in_path = compile_path(path)
        returned = item_type(function, hints.get("return", Any))
        self.output = output_of(name, returned, self._place)
        self.places = Places(function, hints, self.in_path)
        self.app = FastAPI(openapi_url=None, strict_content_type=False)
        self.app.add_exception_handler(HTTPException, self._refused)
        self.app.add_exception_handler(RequestValidationError, self._invalid)
        self.app.add_exception_handler(Exception, self._failed)
        self.app.add_api_route(
            path, self._endpoint(function, hints), methods=["POST"], operation_id=name, name=name
        )

    def answer(
        self, call: Call, pickled: bool
    ) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
        """Return the ASGI app that answers a request."""

        if pickled:
            return PythonCall(self, call.body)

        async def respond(scope: Scope, receive: Receive, send: Send) -> None:
            scope["fal_given"] = functools.partial(shown.body, call.body)
            with contextlib.suppress(Exception):  # `_failed` has seen it
                await self.app(scope, call.replayed(), send)

        return respond

    def streaming(self, path: str) -> FastApiRoute:
        """Return the same at another path, where its result is sent as events."""
        function, hints = self._function, self._hints
        return FastApiRoute(
            self.name, path, function, hints, self.workers, self.reports, as_event=True
        )

    async def _refused(self, request: Request, error: Exception) -> Response:
        """Answer what a dependency refuses, without secrets, as what the function does."""
        return refused(self.reports, error, request.scope.get("fal_given", str))

    async def _invalid(self, request: Request, error: Exception) -> Response:
        """Answer as FastAPI does what does not fit, without secrets that a validator tells."""
        from fastapi.encoders import jsonable_encoder

        found = jsonable_encoder(error.errors())  # type: ignore[attr-defined]
        return error_response(422, found, redact=self.reports.redact)

    async def _failed(self, request: Request, error: Exception) -> Response:
        """Answer what a dependency raises, and FastAPI of a result that does not fit."""
        from fastapi.exceptions import ResponseValidationError

        if isinstance(error, ResponseValidationError):
            error = placed(error, self._place)
        if OUTCOME in request.scope:
            return _noted(request, error)
        return await self._refused(request, error)

    def matches(self, path: str) -> bool:
        """Say whether a path is one of its template's."""
        return self._template.match(path) is not None

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document that FastAPI makes of it."""
        from fastapi.openapi.utils import get_openapi

        return get_openapi(title=self.name, version="1", routes=self.app.routes)

    def _endpoint(
        self, function: Callable[..., Any], hints: Mapping[str, Any]
    ) -> Callable[..., Any]:
        """Return the function as FastAPI is to see it: async, with its annotations resolved."""

        async def endpoint(fal_request: Request, **kwargs: Any) -> Any:
            given = fal_request.scope.get("fal_given", str)
            try:
                work = function, (), kwargs, lambda value: value, self._aside
                result = await self.workers.call(*work)
            except Exception as error:
                if OUTCOME in fal_request.scope:
                    return _noted(fal_request, error)
                return refused(self.reports, error, given)
            if LEFT in fal_request.scope:
                return cancelled()
            if OUTCOME in fal_request.scope:
                return _noted(fal_request, result)
            if self._as_event and not isinstance(result, Response) and not is_stream(result):
                result = _once(result)
            if is_stream(result):
                return streamed(self, self.output, result, given)
            failed = functools.partial(self.reports.failed, given=given)
            return closed_in_time(result, self.workers, failed)

        from fastapi import Depends

        parameters = inspect.signature(function).parameters.values()
        # A dependency, for FastAPI gives the request itself to one parameter: the user's own. It
        # is not said to be one: up to 0.121 FastAPI refuses a dependency of that type.
        ours = Annotated[Any, Depends(_itself)]
        own = inspect.Parameter("fal_request", inspect.Parameter.KEYWORD_ONLY, annotation=ours)
        signature = inspect.Signature(
            [*(_resolved(p, hints, p.name in self.in_path) for p in parameters), own],
            return_annotation=_empty if streams(function) else hints.get("return", _empty),
        )
        endpoint.__signature__ = signature  # type: ignore[attr-defined]
        endpoint.__name__, endpoint.__doc__ = self.name, function.__doc__
        return endpoint


async def _itself(request: Request) -> Request:
    return request


def _noted(request: Request, outcome: Any) -> Response:
    request.scope[OUTCOME].append(outcome)
    return Response()


def _refuse_old_fastapi() -> None:
    import fastapi

    if tuple(map(int, fastapi.__version__.split(".")[:2])) < _OLDEST:
        raise AppDefinitionError(
            f"FastAPI {fastapi.__version__} is too old to serve this; require fastapi>="
            + ".".join(map(str, _OLDEST))
        )


def needs_fastapi(path: str, function: Callable[..., Any], hints: Mapping[str, Any]) -> bool:
    """Say whether a path or a signature holds what only FastAPI knows."""
    parameters = inspect.signature(function).parameters.values()
    return "{" in path or any(_is_fastapis(p, hints) for p in parameters)


def _is_fastapis(parameter: inspect.Parameter, hints: Mapping[str, Any]) -> bool:
    annotation = hints.get(parameter.name)
    marks = [parameter.default]
    if get_origin(annotation) is Annotated:
        annotation, *more = get_args(annotation)
        marks += more
    if any(of_fastapi(mark) for mark in marks):
        return True
    return is_class_of(annotation, *GIVEN) and not is_class_of(annotation, Request)


def _resolved(
    parameter: inspect.Parameter, hints: Mapping[str, Any], in_path: bool
) -> inspect.Parameter:
    """Return a parameter by keyword; a plain one is a field of the JSON body, as in all apps."""
    from fastapi import Body

    annotation = hints.get(parameter.name, Any)
    known = in_path or _is_fastapis(parameter, hints) or is_model_or_request(annotation)
    if not known:
        annotation = Annotated[annotation, Body(embed=True)]
    return parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=annotation)


def _once(result: Any) -> Iterator[Any]:
    yield result
