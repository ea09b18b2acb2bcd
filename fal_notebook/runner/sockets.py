"""A path of an app that is a WebSocket: what is called for it, and what the document says of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from starlette.routing import compile_path
from starlette.websockets import WebSocket

from fal_notebook.endpoints import RouteSignature
from fal_notebook.runner.reports import Reports
from fal_notebook.runner.session import Serve
from fal_notebook.runner.workers import Workers


class SocketRoute:
    """One path.

    Attributes
    ----------
    serve : callable
        Serves a socket that was asked for.
    """

    def __init__(
        self,
        name: str,
        route: RouteSignature,
        method: Callable[..., Any],
        hints: Mapping[str, Any],
        workers: Workers,
        reports: Reports,
    ) -> None:
        self.name = name
        self._template = compile_path(route.path)[0]
        self._realtime = None
        if route.realtime is not None:
            from fal_notebook.runner.realtime import Realtime

            self._realtime = Realtime(method, route.realtime, hints, workers, reports)
            self.serve: Serve = self._realtime.serve
        else:
            self.serve = _handler(route.path, method, hints)

    def matches(self, path: str) -> bool:
        """Say whether a path is this one, or one of its template."""
        return self._template.match(path) is not None

    def openapi(self) -> dict[str, Any]:
        """Return what stands under its path in the document; OpenAPI has no word for it."""
        if self._realtime is None:
            return {"x-fal-protocol": {"type": "websocket", "operationId": self.name}}
        options = self._realtime.options
        told = {
            "type": "realtime",
            "operationId": self.name,
            "config": {
                "buffering": options.buffering,
                "sessionTimeout": options.session_timeout,
                "maxBatchSize": options.max_batch_size,
            },
            "contentType": options.content_type,
            "realtimeMode": self._realtime.mode,
        }
        return {"x-fal-protocol": told}


def _handler(path: str, method: Callable[..., Any], hints: Mapping[str, Any]) -> Serve:
    """Return what serves a socket; a signature with more than that is FastAPI's."""
    if len(inspect.signature(method).parameters) == 1 and "{" not in path:
        return method
    from fastapi import FastAPI

    app = FastAPI(openapi_url=None)
    app.add_api_websocket_route(path, _resolved(method, hints))

    async def serve(socket: WebSocket) -> None:
        await app(socket.scope, socket.receive, socket.send)

    return serve


def _resolved(method: Callable[..., Any], hints: Mapping[str, Any]) -> Callable[..., Any]:
    """Return the method as FastAPI is to see it, with its annotations resolved."""

    async def endpoint(**given: Any) -> None:
        await method(**given)

    found = inspect.signature(method).parameters.values()
    keyword = inspect.Parameter.KEYWORD_ONLY
    endpoint.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [p.replace(kind=keyword, annotation=hints.get(p.name, p.annotation)) for p in found]
    )
    return endpoint
