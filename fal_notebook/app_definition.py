"""What a class says as an app: its options, name and endpoints, checked when it is defined."""

from __future__ import annotations

import functools
import inspect
import re
import types
from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from fal_notebook.endpoints import RouteSignature, endpoints_of, refuse_covered
from fal_notebook.exceptions import AppDefinitionError, OptionError

if TYPE_CHECKING:
    from fal_notebook.option_types import HealthCheck

# fal's names of attributes, and the options that they are.
_ATTRIBUTES = {"app_name": "name", "app_auth": "auth"}
# Names that are options elsewhere and of which a class is free to make anything.
_NO_ATTRIBUTES = frozenset({"setup_function", "serve", "name", "message", "force", "metadata"})
# Keywords that are no options: where requirements begin, and what is about fal's own machines.
_NO_OPTIONS = frozenset(
    {"requirements_context_dir", "_scheduler", "_scheduler_options", "resolver"}
)
_NO_VALUES = (types.FunctionType, classmethod, staticmethod, property, functools.cached_property)


def check(cls: type, line: int) -> None:
    """Refuse a class that cannot be an app.

    Raises
    ------
    AppDefinitionError
        Names the class and the line at fault.
    """
    where = f"class `{cls.__name__}`"
    try:
        _refuse_init(cls)
        _refuse_arguments(cls)
        refuse_covered(cls)
        _refuse_shared_paths(cls)
        if _own_options(cls):
            options_of(cls)
    except AppDefinitionError as error:
        raise AppDefinitionError(f"{where}: {error}") from None
    except OptionError as error:
        raise AppDefinitionError(f"{where} (line {line}): {error}") from None


def options_of(cls: type) -> dict[str, Any]:
    """Return the options that a class and its bases give, checked.

    The nearest class wins, and within one an attribute over its keyword, as in fal.

    Raises
    ------
    OptionError
        When they cannot be.
    """
    from fal_notebook.options import split_options

    values: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        values |= _own_options(base)
    split_options(values)
    health_check = health_check_of(cls)
    if health_check is None:
        return values
    if values.get("health_check") is not None:
        raise OptionError(
            f"health_check is an option of the class and a mark of {health_check.path}; keep one"
        )
    return {**values, "health_check": health_check}


def requirements_folder(cls: type) -> str | None:
    """Return where the class's local requirements begin, None where the notebook lies."""
    name = "requirements_context_dir"
    for base in cls.__mro__:
        found = vars(base).get(name) or vars(base).get("_fal_keywords", {}).get(name)
        if found is not None:
            return str(found)
    return None


def app_name_of(cls: type) -> str:
    """Return the name of the app that a class is by default: MyServer is ``my-server``."""
    return re.sub(r"(?<=[^_])(?=[A-Z])", "-", cls.__name__).strip("_").lower()


def http_endpoints(cls: type) -> dict[str, RouteSignature]:
    """Return the endpoints that are no WebSockets, by method name.

    Raises
    ------
    AppDefinitionError
        When the class has no endpoint at all.
    """
    found = endpoints_of(cls)
    if not found:
        of_sdk = any(hasattr(member, "route_signature") for member in vars(cls).values())
        whose = " of fal_notebook, not that of fal's SDK," if of_sdk else ""
        raise AppDefinitionError(
            f"class `{cls.__name__}` has no endpoint; put @fal.endpoint('/'){whose} on a method"
        )
    return {name: route for name, route in found.items() if not route.is_websocket}


def health_check_of(cls: type) -> HealthCheck | None:
    """Return how the app's health is asked for, with the path of the endpoint that says it."""
    checks = [route for route in endpoints_of(cls).values() if route.health_check is not None]
    if not checks:
        return None
    given: HealthCheck = checks[0].health_check
    return given.model_copy(update={"path": checks[0].path, "method": given.method or "POST"})


def _own_options(cls: type) -> dict[str, Any]:
    """Return the options that stand in the class itself."""
    members = vars(cls)
    given: Mapping[str, Any] = members.get("_fal_keywords", {})
    if "setup_function" in given:
        raise OptionError("setup_function is for functions; an app has the method setup(self)")
    keywords = {n: v for n, v in given.items() if n not in _NO_OPTIONS}
    return {**keywords, **dict(_attributes(members))}


def _attributes(members: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    candidates = {n: v for n, v in members.items() if not n.startswith("_") and v is not None}
    candidates = {n: v for n, v in candidates.items() if not isinstance(v, _NO_VALUES)}
    if not candidates:
        return
    from fal_notebook.options import Options

    known = Options.model_fields.keys() - _NO_ATTRIBUTES
    for name, value in candidates.items():
        option = _ATTRIBUTES.get(name, name)
        if name in _ATTRIBUTES or option in known:
            yield option, value


def no_options(cls: type) -> list[str]:
    """Note the attributes that one might take for options; they are the class's own."""
    from fal_notebook.options import CellOptions, Options

    every = Options.model_fields.keys() | CellOptions.model_fields.keys()
    known = Options.model_fields.keys() - _NO_ATTRIBUTES | _ATTRIBUTES.keys()
    values = {n: v for n, v in vars(cls).items() if isinstance(v, (int, str, list, dict))}
    candidates = [n for n in values if not n.startswith("_") and n not in known]
    said = {name: _instead(name, name in every, known) for name in candidates}
    return [
        f"the attribute `{n}` of `{cls.__name__}` is no option; {s}" for n, s in said.items() if s
    ]


def _instead(name: str, keyword: bool, known: Collection[str]) -> str:
    """Return what is to be written in place of an attribute, if that was meant for an option."""
    if keyword:
        return f"write {name}=… behind the class's bases, or on the line"
    nearest = get_close_matches(name, known, n=1, cutoff=0.9)
    return f"did you mean {nearest[0]}?" if nearest else ""


def _refuse_init(cls: type) -> None:
    for base in cls.__mro__:
        init = vars(base).get("__init__")
        if base is not object and init is not None:
            line = init.__code__.co_firstlineno if inspect.isfunction(init) else 0
            raise AppDefinitionError(
                f"__init__ (line {line}) cannot be overridden in an app; do it in setup(self), "
                "which runs once in each runner"
            )


def _refuse_arguments(cls: type) -> None:
    """Refuse what a runner calls without arguments where it needs some."""
    for name in ("setup", "teardown", "handle_exit"):
        method = inspect.getattr_static(cls, name)
        if not inspect.isfunction(method):
            continue
        parameters = inspect.signature(method, follow_wrapped=False).parameters.values()
        stars = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
        if not parameters:
            raise AppDefinitionError(
                f"{name} (line {method.__code__.co_firstlineno}) takes no self; write it as its "
                "first parameter"
            )
        needed = [p for p in parameters if p.default is p.empty and p.kind not in stars]
        if len(needed) > 1:
            raise AppDefinitionError(
                f"{name} (line {method.__code__.co_firstlineno}) takes {needed[1].name}, which no "
                "runner gives it; leave it out"
            )


def _refuse_shared_paths(cls: type) -> None:
    owners: dict[str, str] = {}
    checks: list[str] = []
    for name, route in endpoints_of(cls).items():
        if route.path in owners:
            line = inspect.unwrap(getattr(cls, name)).__code__.co_firstlineno
            raise AppDefinitionError(
                f"`{name}` (line {line}) has the path {route.path!r}, which is that of "
                f"`{owners[route.path]}`; give each endpoint a path of its own"
            )
        owners[route.path] = name
        checks += [name] if route.health_check is not None else []
    if len(checks) > 1:
        raise AppDefinitionError(f"`{checks[0]}` and `{checks[1]}` are health checks; keep one")
