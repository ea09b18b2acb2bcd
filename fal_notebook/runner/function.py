"""A function as an app: its one route is ``/``, and setup_function gives its first argument."""

from __future__ import annotations

import copy
import inspect
import types
from collections.abc import Callable
from typing import Any

from fal_notebook.runner.fastapi_route import FastApiRoute
from fal_notebook.runner.reports import Reports
from fal_notebook.runner.route import Route
from fal_notebook.runner.served import Served, define_in_main, fill_main
from fal_notebook.runner.workers import Workers

# Where fal's clients stream from.
STREAM = "/stream"


class ServedFunction(Served):
    """A loaded function."""

    def __init__(
        self, loaded: dict[str, Any], manifest: dict[str, Any], reports: Reports, workers: Workers
    ) -> None:
        super().__init__(manifest, reports, workers)
        self._function: Callable[..., Any] = loaded["function"]
        self._setup: Callable[..., Any] | None = loaded["setup"]
        self._hints: dict[str, Any] = loaded["hints"]
        self._stream: Route | FastApiRoute | None = None
        inner = inspect.unwrap(self._function)
        fill_main(inner)
        if isinstance(inner, types.FunctionType):
            define_in_main(inner)

    async def setup(self) -> None:
        """Run setup_function, then make the route; its result becomes the first argument.

        Raises
        ------
        TypeError
            When there is a result and the function takes no argument for it.
        """
        result = None if self._setup is None else await self.workers.run(self._setup)
        first = () if result is None else (result,)
        self.add(self.manifest["name"], "/", self._function, self._hints, first)
        if isinstance(route := self.routes["/"], Route):
            self._stream = copy.copy(route)
            self._stream.as_event = True
        else:
            self._stream = route.streaming(STREAM)

    def find(self, path: str) -> Any:
        """Return the route of a path; the function answers ``/stream`` too, with events."""
        return self._stream if path == STREAM else super().find(path)
