"""An `App` class as a runner serves it: one instance, set up once, a route per endpoint."""

from __future__ import annotations

import os
import sys
from typing import Any

from fal_notebook import ref
from fal_notebook.app import App
from fal_notebook.endpoints import endpoints_of
from fal_notebook.runner.reports import Reports
from fal_notebook.runner.served import Served, define_in_main, fill_main
from fal_notebook.runner.sockets import SocketRoute
from fal_notebook.runner.workers import Workers

CANCEL = "/cancel"


class ServedApp(Served):
    """A loaded class and its instance.

    Attributes
    ----------
    app : App
    """

    def __init__(
        self, loaded: dict[str, Any], manifest: dict[str, Any], reports: Reports, workers: Workers
    ) -> None:
        super().__init__(manifest, reports, workers)
        cls: type[App] = loaded["function"]
        self._hints: dict[str, dict[str, Any]] = loaded["hints"]
        for member in vars(cls).values():
            fill_main(member)
        define_in_main(cls)
        self.app = cls()
        self.own_hints = cls.provide_hints is not App.provide_hints

    async def setup(self) -> None:
        """Run the app's `setup`, then make the routes.

        Raises
        ------
        TypeError
            When an endpoint's signature cannot be served.
        """
        ref.set_current_app(self.app)
        await self.workers.run(self.app.setup)
        routes = endpoints_of(type(self.app))
        paths = {route.path for route in routes.values()}
        for name, hints in self._hints.items():  # in their order; a pickled class has lost it
            route, method = routes[name], getattr(self.app, name)
            if route.is_websocket:
                self.sockets[route.path] = SocketRoute(
                    *(name, route, method, hints, self.workers, self.reports)
                )
                continue
            # A route of its own below another's path is called about a request that holds a slot;
            # a runner that is busy is well.
            base = route.path.removesuffix(CANCEL) or "/"
            aside = route.path.endswith(CANCEL) and base in paths
            aside = aside or route.health_check is not None
            self.add(name, route.path, method, hints, aside=aside)
        os.environ["FAL_RUNNER_STATE"] = "RUNNING"

    async def health(self) -> Any:
        """Return what the app's own `health` says."""
        return await self.workers.run(self.app.health, aside=True)

    def hints(self) -> str | None:
        """Return the app's hints as a header's value; errors are logged and give none."""
        try:
            found: Any = self.app.provide_hints()
            hints = [found] if isinstance(found, str) else found
            return ",".join(hint for hint in hints if _fits(hint))
        except NotImplementedError:
            return None
        except Exception as error:
            self.reports.report(error)
            return None

    async def handle_exit(self) -> None:
        """Run the app's `handle_exit`; its errors are logged."""
        os.environ["FAL_RUNNER_STATE"] = "TERMINATING"
        await self._last(self.app.handle_exit)

    async def teardown(self) -> None:
        """Run the app's `teardown`; its errors are logged."""
        await self._last(self.app.teardown)

    async def _last(self, method: Any) -> None:
        try:
            await self.workers.run(method, aside=True)
        except Exception as error:
            self.reports.report(error)


def _fits(hint: str) -> bool:
    """Say whether a hint can stand in a header."""
    if hint.isprintable() and hint.isascii() and "," not in hint:
        return True
    sys.stderr.write(f"the hint {hint!r} is left out: it cannot stand in a header\n")
    return False
