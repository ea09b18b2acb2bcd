"""What a runner serves: the routes of a loaded payload, a function's one or those of an app."""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable
from typing import Any

from pydantic.errors import PydanticUserError

from fal_notebook.runner.fastapi_route import FastApiRoute, needs_fastapi
from fal_notebook.runner.openapi import openapi
from fal_notebook.runner.reports import Reports
from fal_notebook.runner.route import Route
from fal_notebook.runner.schema import read_signature
from fal_notebook.runner.session import Serve
from fal_notebook.runner.sockets import SocketRoute
from fal_notebook.runner.workers import Workers


class Served:
    """Base of the two kinds.

    Attributes
    ----------
    routes : dict
        A `Route` or `FastApiRoute` for each path, once it is set up.
    sockets : dict
        A `SocketRoute` for each path that is a WebSocket.
    own_hints : bool
        Whether answers carry `hints`.
    """

    own_hints = False

    def __init__(self, manifest: dict[str, Any], reports: Reports, workers: Workers) -> None:
        self.manifest = manifest
        self.reports = reports
        self.workers = workers
        self.routes: dict[str, Any] = {}
        self.templates: list[FastApiRoute] = []
        self.sockets: dict[str, SocketRoute] = {}

    async def setup(self) -> None:
        """Run the user's setup, then make the routes."""

    async def health(self) -> Any:
        """Return what ``GET /health`` answers."""
        return {"status": "ok"}

    def hints(self) -> str | None:
        """Return the value of the header ``x-fal-runner-hints``."""
        return None

    async def handle_exit(self) -> None:
        """Tell the user's code that the runner will end."""

    async def teardown(self) -> None:
        """Run the user's code that comes last."""

    def find(self, path: str) -> Any:
        """Return the route of a path, None where there is none."""
        route = self.routes.get(path)
        if route is None and self.templates:
            route = next((r for r in self.templates if r.matches(path)), None)
        return route

    def socket(self, path: str) -> Serve | None:
        """Return what serves a WebSocket at a path, None where there is none."""
        route = self.sockets.get(path)
        if route is None:
            route = next((r for r in self.sockets.values() if r.matches(path)), None)
        return route.serve if route is not None else None

    def own_path(self, path: str) -> str:
        """Return a path as its route has it: a slash at its end may be there or not."""
        other = path[:-1] if path.endswith("/") else f"{path}/"
        return other if self.find(path) is None and self.find(other) is not None else path

    def add(
        self,
        name: str,
        path: str,
        function: Callable[..., Any],
        hints: dict[str, Any],
        first: tuple[Any, ...] = (),
        aside: bool = False,
    ) -> None:
        """Have ``POST path`` call a function; `first` are arguments before those of the request.

        `aside` of all slots where it is about requests that hold one.

        Raises
        ------
        TypeError
            When its signature cannot be served.
        """
        if needs_fastapi(path, function, hints):
            whole = functools.partial(function, *first) if first else function
            given = whole, hints, self.workers, self.reports
            route = FastApiRoute(name, path, *given, aside=aside)
            self.routes[path] = route
            self.templates += [route] if "{" in path else []
            return
        try:
            signature = read_signature(function, hints, skip_first=bool(first))
        except PydanticUserError as error:
            said = f"the annotations of `{name}` cannot be served: {error.message}"
            raise TypeError(said) from None
        self.routes[path] = Route(
            name, function, signature, self.workers, self.reports, first, aside
        )

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document."""
        return openapi(self.manifest["name"], self.manifest.get("doc"), self.routes, self.sockets)


def fill_main(function: Any) -> None:
    """Give ``__main__`` the names of the notebook that were captured, for pickling by name."""
    if isinstance(function, types.FunctionType) and function.__module__ == "__main__":
        vars(sys.modules["__main__"]).update(
            {n: v for n, v in function.__globals__.items() if not n.startswith("__")}
        )


def define_in_main(value: Any) -> None:
    """Let a function or class of the notebook be found by its name."""
    if value.__module__ == "__main__":
        vars(sys.modules["__main__"]).setdefault(value.__name__, value)
