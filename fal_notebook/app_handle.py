"""The handle of an `App`: its endpoints as methods."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any

from fal_notebook.app_definition import http_endpoints
from fal_notebook.endpoints import endpoints_of
from fal_notebook.exceptions import FalNotebookError
from fal_notebook.handle import Endpoint, Handle

_ATTRIBUTES = ("owner", "name")


class AppHandle(Handle):
    """A deployed `App` class.

    Each endpoint is a method: ``app.generate(prompt="…")``. Where a handle has a method of that
    name itself, as `status`, the endpoint is reached by its path: ``app["/status"]()``. Inside
    another payload it travels as owner and name with its endpoints.

    Parameters
    ----------
    original : type, optional
        The class as the cell defined it.
    """

    def __init__(
        self,
        owner: str,
        name: str,
        original: Any = None,
        deployed: Future[Any] | None = None,
        setup_function: Callable[[], Any] | None = None,
    ) -> None:
        super().__init__(owner, name, None, deployed)
        self._original = original
        self._endpoints: dict[str, Endpoint] = {}
        if original is not None:
            self.__doc__ = original.__doc__
            self._endpoints = self._endpoints_of(original)
        self._instance: Any = None

    def _endpoints_of(self, cls: Any) -> dict[str, Endpoint]:
        routes = http_endpoints(cls)
        return {method: Endpoint(self, route.path) for method, route in routes.items()}

    def __getattr__(self, name: str) -> Endpoint:
        endpoints: dict[str, Endpoint] = vars(self).get("_endpoints", {})
        if name in endpoints:
            return endpoints[name]
        original = vars(self).get("_original")
        route = endpoints_of(original).get(name) if original is not None else None
        if route is not None:
            where = self.url.replace("http", "ws", 1) + route.path
            raise AttributeError(f"{name!r} is a WebSocket: connect to {where} with your key")
        raise AttributeError(
            f"the app {vars(self).get('name')} has no {name!r}; its endpoints are "
            f"{', '.join(endpoints)}"
        )

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        """Stand for the class where another is derived from it: its name is bound to this."""
        cls: Any = self.original
        return (cls,)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._endpoints})

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Call the endpoint at ``/``."""
        __tracebackhide__ = True
        if "/" not in {endpoint.path for endpoint in self._endpoints.values()}:
            raise FalNotebookError(
                f"{self.name} has no endpoint '/'; call one of {', '.join(self._endpoints)}"
            )
        return self["/"](*args, **kwargs)

    def stream(self, path: str = "/stream", /, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """Yield the values of a path as they come, by default of ``/stream``."""
        return self[path].stream(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel as owner and name, with the endpoints."""
        return type(self), (self.owner, self.name), {"_endpoints": self._endpoints}

    @property
    def local(self) -> Any:
        """An instance of the class here, set up once: ``app.local.generate(prompt="…")``."""
        if self._instance is None:
            cls: Any = self.original
            if inspect.iscoroutinefunction(cls.setup):
                raise FalNotebookError(
                    f"{self.name} has an async setup, which only a runner can run; make an "
                    "instance with .original() and await its setup()"
                )
            instance = cls()
            instance.setup()
            self._instance = instance
        return self._instance


def hidden(paths: Mapping[str, str]) -> list[str]:
    """Note the endpoints, name by name with their paths, that a handle has verbs of."""
    own = {n: path for n, path in paths.items() if hasattr(AppHandle, n) or n in _ATTRIBUTES}
    if not own:
        return []
    names = " and ".join(f"`{name}`" for name in own)
    calls = " and ".join(f'app["{path}"](…)' for path in own.values())
    one, many = "is the handle's own; this endpoint is", "are the handle's own; these endpoints are"
    are = one if len(own) == 1 else many
    return [f"{names} {are} called as {calls}"]
