"""What a payload says about itself in plain JSON, to be read before anything is unpickled."""

from __future__ import annotations

import functools
import inspect
import itertools
import sys
import types
from collections.abc import Iterable, Mapping
from typing import Any

import cloudpickle

from fal_notebook.app import is_app
from fal_notebook.payload.items import Item
from fal_notebook.payload.references import is_by_value, is_class, is_function
from fal_notebook.payload.sources import source_of
from fal_notebook.runner.sdk_server import SdkServer


def manifest_of(
    function: Any,
    setup: Any,
    sources: Mapping[str, str],
    digest: str,
    captured: Iterable[Mapping[str, Any]],
    modules: Iterable[str],
) -> dict[str, Any]:
    """Return the manifest of a captured function: the versions that load it, and what it is."""
    return {
        "format": 1,
        "python": python_minor(),
        "implementation": sys.implementation.name,
        "interpreter": sys.executable,
        "cloudpickle": cloudpickle.__version__,
        "packages": _versions(modules),
        "name": name_of(function),
        "setup": name_of(setup) if setup is not None else None,
        "kind": _kind(function),
        "doc": _doc(function),
        "sources": dict(sources),
        "digest": digest,
        "captured": [dict(value) for value in captured],
    }


def _versions(modules: Iterable[str]) -> dict[str, str]:
    """Return the versions of the packages among modules, as they call them themselves."""
    tops = sorted({name.split(".")[0] for name in modules})
    found = {top: getattr(sys.modules.get(top), "__version__", None) for top in tops}
    return {top: version for top, version in found.items() if isinstance(version, str)}


def python_minor() -> str:
    """Return the running Python as ``3.11``."""
    return "{}.{}".format(*sys.version_info)


def plain(function: Any) -> Any:
    """Return the function inside a partial, or the method behind a callable object."""
    while isinstance(function, (functools.partial, functools.partialmethod)):
        function = function.func
    if is_function(function) or is_class(function) or hasattr(function, "__name__"):
        return function
    return type(function).__call__


def name_of(function: Any) -> str:
    """Return the name of a function, of the one in a partial, or of a callable object's class."""
    named = plain(function)
    own = named if named.__name__ != "__call__" else type(function)
    return str(own.__name__)


def _doc(function: Any) -> str | None:
    """Return the docstring; a class without one would have that of `App`."""
    if isinstance(function, SdkServer):
        function = function.app
    if is_class(function):
        return inspect.cleandoc(function.__doc__) if function.__doc__ else None
    return inspect.getdoc(plain(function))


def _kind(function: Any) -> str:
    if isinstance(function, SdkServer):
        return "sdk"
    if is_app(function):
        return "app"
    code = plain(function)
    if inspect.isasyncgenfunction(code):
        return "asyncgen"
    if inspect.isgeneratorfunction(code):
        return "generator"
    return "async" if inspect.iscoroutinefunction(code) else "function"


def sources_of(items: list[Item]) -> dict[str, str]:
    """Return the sources of captured functions, classes and shipped modules.

    Methods are in those of their class.
    """
    sources: dict[str, str] = {}
    for item in items:
        code = _code(item)
        owner: Any = item.owner.value if item.owner is not None else None
        in_class = is_class(owner) and owner.__qualname__ in sources
        source = source_of(code) if is_by_value(code) and not in_class else None
        if source is not None and source not in sources.values():
            sources[_free_name(_source_name(code), sources)] = source
    return sources


def _code(item: Item) -> Any:
    """Return what has the source of an item: of the captured function, that inside of it."""
    if isinstance(item.value, SdkServer):
        return item.value.app
    return plain(item.value) if item.how == "root" else item.value


def _source_name(code: Any) -> str:
    """Return the name that the source itself defines: a wrapper calls itself like the wrapped."""
    if isinstance(code, types.ModuleType):
        return code.__name__
    wrapper = is_function(code) and code.__code__.co_name != code.__name__
    return str(code.__code__.co_name if wrapper else code.__qualname__)


def _free_name(name: str, taken: Mapping[str, str]) -> str:
    numbered = (f"{name} ({count})" for count in itertools.count(2))
    return next(n for n in itertools.chain([name], numbered) if n not in taken)
