"""Type aliases and type parameters of the notebook, which are made anew where they are loaded."""

from __future__ import annotations

import functools
import sys
import types
import typing
from typing import Any

import typing_extensions
from typing_extensions import get_type_hints

# The one of the ``type`` statement, and that of Pythons before it.
_NATIVE: Any = getattr(typing, "TypeAliasType", typing_extensions.TypeAliasType)
KINDS: tuple[Any, ...] = (_NATIVE, typing_extensions.TypeAliasType)

# What ``*Ts`` is on this Python.
VARIADIC: Any = type(typing_extensions.TypeVarTuple("VARIADIC"))
_BECAME = ("__forward_evaluated__", "__forward_value__")
_NAMED = (typing.NewType, typing.ParamSpec, VARIADIC, *KINDS)

_empty: dict[int, list[Any]] = {}  # what evaluates to the values of aliases that have none yet


def value_of(alias: Any) -> Any:
    """Return what an alias stands for, with the names in its texts as what they name, if known."""
    holder = types.SimpleNamespace(__annotations__={"value": alias.__value__})
    scope = vars(sys.modules[alias.__module__]) if alias.__module__ in sys.modules else {}
    try:
        return get_type_hints(holder, scope, include_extras=True)["value"]
    except Exception:  # annotations are code: they may raise anything
        return alias.__value__


def reduced(value: Any) -> tuple[Any, ...] | None:
    """Return how an alias, a `NewType`, or a name in quotes is pickled, None for all else.

    An alias is first made, then given its value, which may hold it; so is a name in quotes, with
    what became of it.
    """
    kind: Any = type(value)
    if kind is typing.ForwardRef:
        given = value.__forward_arg__, value.__forward_is_argument__, value.__forward_module__
        became = {name: getattr(value, name) for name in _BECAME}
        return functools.partial(kind, is_class=value.__forward_is_class__), given, (None, became)
    if kind not in _NAMED or _is_in_a_module(value):
        return None
    if kind is typing.NewType:
        return kind, (value.__name__, value.__supertype__)
    return _reduced_alias(value) if kind in KINDS else (kind, (value.__name__,))


def _is_in_a_module(value: Any) -> bool:
    """Whether a module that a runner has holds it; ``def f[**P]`` says that typing has its `P`."""
    module = value.__module__
    return module != "__main__" and getattr(sys.modules.get(module), value.__name__, None) is value


def _reduced_alias(alias: Any) -> tuple[Any, ...]:
    kind: Any = type(alias)
    name, parameters = alias.__name__, alias.__type_params__
    if parameters or not name.isidentifier():
        return functools.partial(kind, type_params=parameters), (name, value_of(alias))
    return _made, (kind, name, alias.__module__), (value_of(alias),), None, None, _fill


def _made(kind: Any, name: str, module: str) -> Any:
    if not hasattr(typing, "TypeAliasType") or kind is not _NATIVE:
        made = kind(name, None)
        made.__module__ = module
        return made
    scope: dict[str, Any] = {"__name__": module, "value": []}
    exec(f"type {name} = value[0]", scope)  # evaluated when somebody asks
    _empty[id(scope[name])] = scope["value"]
    return scope[name]


def _fill(alias: Any, state: tuple[Any]) -> None:
    if id(alias) in _empty:
        _empty.pop(id(alias)).extend(state)
    else:
        object.__setattr__(alias, "__value__", *state)
