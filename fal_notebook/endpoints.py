"""`endpoint`: marks a method of an `App` as one of its paths; serving it is the runner's."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from fal_notebook.exceptions import AppDefinitionError

F = TypeVar("F", bound=Callable[..., Any])

_MARK = "route_signature"
RESERVED = "/requests"
# A part of a path that varies, as Starlette has it.
_PLACEHOLDER = re.compile(r"\{[a-zA-Z_]\w*(:(str|path|int|float|uuid))?\}")


class RouteSignature(NamedTuple):
    """What an endpoint's decorator says: a `HealthCheck`, the `RealtimeOptions`."""

    path: str
    is_websocket: bool = False
    health_check: Any = None
    realtime: Any = None


def endpoint(
    path: str, *, is_websocket: bool = False, health_check: Any = None, billing: Any = None
) -> Callable[[F], F]:
    """Serve a method at ``POST path``.

    Parameters
    ----------
    path : str
        Begins with ``/``; each path belongs to one method.
    is_websocket : bool
        The method is async and takes a ``WebSocket``.
    health_check : HealthCheck, optional
        This endpoint says whether the runner is well; one of an app does.

    Raises
    ------
    AppDefinitionError
        When the path or the health check is none, or the method has one already.
    """
    if billing is not None:
        raise AppDefinitionError("billing declarations are fal's own; leave billing out here")

    return mark(RouteSignature(path, is_websocket, health_check))


def mark(route: RouteSignature) -> Callable[[F], F]:
    """Return the decorator that gives a method its route; it refuses what cannot be one."""
    first: Any = route.path
    if inspect.isfunction(first):
        decorator = "realtime" if route.realtime else "endpoint"
        raise AppDefinitionError(
            f"{where_of(first)} has no path; write @fal.{decorator}('/{first.__name__}')"
        )

    def decorate(method: F) -> F:
        _refuse_wrong(method, route.path)
        if route.health_check is not None and not hasattr(route.health_check, "model_copy"):
            raise AppDefinitionError(
                f"{where_of(method)} has health_check={route.health_check!r}; write "
                "health_check=fal_notebook.HealthCheck(), with its options"
            )
        path = getattr(route.health_check, "path", "")
        if path not in ("", route.path):
            raise AppDefinitionError(
                f"{where_of(method)} is at {route.path!r}, and its health check asks {path!r}; "
                "leave path out there"
            )
        if route.is_websocket and route.health_check is not None:
            raise AppDefinitionError(f"{where_of(method)} is a WebSocket and no health check")
        if route.is_websocket and route.realtime is None:
            _refuse_no_handler(method)
        setattr(method, _MARK, route)
        return method

    return decorate


def _refuse_wrong(method: Any, path: str) -> None:
    if not inspect.isfunction(method):
        raise _no_method(_covered(method) or method)
    where = where_of(method)
    _refuse_no_self(method, where)
    if not isinstance(path, str) or not path.startswith("/"):
        raise AppDefinitionError(f"{where} has the path {path!r}, which does not begin with '/'")
    if re.search(r"[\s?#]|/\.\.?(/|$)", path):
        raise AppDefinitionError(
            f"{where} has the path {path!r}, which no request can have; leave out spaces, '?', "
            "'#', '/.' and '/..'"
        )
    if re.search(r"[{}]", _PLACEHOLDER.sub("", path)):
        raise AppDefinitionError(
            f"{where} has the path {path!r}; write a part that varies as in '/items/{{name}}'"
        )
    if path == RESERVED or path.startswith(RESERVED + "/"):
        raise AppDefinitionError(f"{where} has the path {path!r}, which belongs to the queue")
    if hasattr(method, _MARK):
        first = getattr(method, _MARK).path
        raise AppDefinitionError(f"{where} has two paths, {first!r} and {path!r}; give it one")


def _no_method(method: Any) -> AppDefinitionError:
    method = inspect.unwrap(method)
    what = where_of(method) if inspect.isfunction(method) else repr(method)
    return AppDefinitionError(f"{what} is no plain method; put @endpoint on a def with self")


def _covered(member: Any) -> Any:
    """Return the function of which a decorator such as `classmethod` has made something else."""
    if isinstance(member, (classmethod, staticmethod)):
        return member.__func__
    if isinstance(member, property):
        return member.fget
    return member.func if isinstance(member, functools.cached_property) else None


def refuse_covered(cls: type) -> None:
    """Refuse an endpoint that is no method any more: nothing would serve it.

    Raises
    ------
    AppDefinitionError
        Names the method and its line.
    """
    for method in map(_covered, _members(cls).values()):
        if route_of(method) is not None:
            raise _no_method(method)


def _refuse_no_self(method: Any, where: str) -> None:
    first = next(iter(inspect.signature(method).parameters.values()), None)
    if first is None or first.kind not in (first.POSITIONAL_ONLY, first.POSITIONAL_OR_KEYWORD):
        raise AppDefinitionError(f"{where} takes no self; write it as its first parameter")
    if first.name != "self" and first.annotation is not first.empty:
        raise AppDefinitionError(f"{where} begins with `{first.name}`; put self before it")


def where_of(method: Any) -> str:
    """Return class, name and line of a method whose class is still being defined."""
    name = method.__qualname__.rpartition("<locals>.")[2]
    return f"endpoint `{name}` (line {method.__code__.co_firstlineno})"


def _refuse_no_handler(method: Any) -> None:
    where = where_of(method)
    if not inspect.iscoroutinefunction(method):
        raise AppDefinitionError(f"{where} is a WebSocket and must be async; make it async def")
    if len(inspect.signature(method).parameters) < 2:
        raise AppDefinitionError(
            f"{where} has no parameter for its WebSocket; add one, as in socket: WebSocket"
        )


def route_of(member: Any) -> RouteSignature | None:
    """Return what the decorator said of a method, None where there was none."""
    route = getattr(member, _MARK, None) if inspect.isroutine(member) else None
    return route if isinstance(route, RouteSignature) else None


def endpoints_of(cls: type) -> dict[str, RouteSignature]:
    """Return the endpoints of a class by method name, those of its bases first."""
    found = {name: route_of(member) for name, member in _members(cls).items()}
    return {name: route for name, route in found.items() if route is not None}


def _members(cls: type) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        members |= vars(base)
    return members
