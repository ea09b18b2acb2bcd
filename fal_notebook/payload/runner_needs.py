"""What the runner itself needs besides its own libraries to serve some code: FastAPI, for few."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

from typing_extensions import get_type_hints

from fal_notebook.app import is_app
from fal_notebook.endpoints import endpoints_of
from fal_notebook.options import Options
from fal_notebook.runner.sdk_server import SdkServer

FASTAPI = "fastapi"
# FastAPI reads forms and files with it.
MULTIPART = "python-multipart"


def modules_for(served: Any) -> frozenset[str]:
    """Return what the runner will import to serve a function or an `App` class."""
    found = any(_needs_it(*route) for route in _routes(served))
    return frozenset({FASTAPI, MULTIPART.replace("-", "_")}) if found else frozenset()


def added_to(served: Any, options: Options) -> list[str]:
    """Return the requirements that an environment of its own gets beside those of the user.

    FastAPI, as with fal, or the SDK in the version that is installed here. They are resolved
    together with the user's own, see `requirement_layers`. An image gets FastAPI only where the
    runner could not serve without.
    """
    if not options.requirements and options.image is None:  # what the kernel has is there
        return []
    if isinstance(served, SdkServer):
        return [f"fal=={version('fal')}"] if options.requirements else []
    function = inspect.isfunction(served) and options.exposed_port is None
    wanted = (function or is_app(served)) if options.requirements else modules_for(served)
    return [FASTAPI, MULTIPART] if wanted else []


def _routes(served: Any) -> Iterator[tuple[str, Callable[..., Any], bool]]:
    """Yield path and function of each endpoint, and whether it takes a plain WebSocket."""
    if is_app(served):
        for name, route in endpoints_of(served).items():
            socket = route.is_websocket and route.realtime is None
            yield route.path, getattr(served, name), socket
    elif inspect.isfunction(served):
        yield "/", served, False


def _needs_it(path: str, function: Callable[..., Any], is_websocket: bool) -> bool:
    if "{" in path:
        return True
    if is_websocket:  # itself and the socket
        return len(inspect.signature(function).parameters) > 2
    if "starlette" not in sys.modules:  # FastAPI's types are those of Starlette
        return False
    from fal_notebook.runner.fastapi_route import needs_fastapi  # imports much

    try:
        hints = get_type_hints(function, include_extras=True)
    except Exception:  # annotations are code: who serves it says what is wrong with them
        return False
    return needs_fastapi(path, function, hints)
