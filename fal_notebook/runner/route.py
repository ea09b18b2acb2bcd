"""One path of an app: the user's function behind it, and how it is called."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from fal_notebook.runner.reports import Reports
from fal_notebook.runner.schema import Signature, streams
from fal_notebook.runner.workers import Finish, Workers, on_the_loop


class Route:
    """What ``POST path`` calls.

    Parameters
    ----------
    function : callable
        A function, or a bound method.
    first : tuple
        Arguments that come before those of the request.
    aside : bool
        It waits for no slot, for it is about requests that hold one.

    Attributes
    ----------
    as_event : bool
        A result that is no stream is sent as its only event.
    """

    as_event = False

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        signature: Signature,
        workers: Workers,
        reports: Reports,
        first: tuple[Any, ...] = (),
        aside: bool = False,
    ) -> None:
        self.name = name
        self.function = function
        self.signature = signature
        self.workers = workers
        self.reports = reports
        self.is_async = on_the_loop(function)
        self.streams = streams(function)
        self.doc = inspect.getdoc(function)
        self._first = first
        self._aside = aside

    async def call(self, args: tuple[Any, ...], kwargs: dict[str, Any], finish: Finish) -> Any:
        """Call the function and return what `finish` makes of its result; see `Workers.call`."""
        args = (*self._first, *args)
        if self.signature.defaults:
            kwargs = self._with_defaults(args, kwargs)
        return await self.workers.call(self.function, args, kwargs, finish, self._aside)

    def _with_defaults(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Fill in what a ``Field`` as default stands for."""
        given = inspect.signature(self.function).bind_partial(*args, **kwargs).arguments
        missing = {n: v for n, v in self.signature.defaults.items() if n not in given}
        return {**missing, **kwargs}
