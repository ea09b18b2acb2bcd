"""Pickles what cloudpickle would change or refuse; `unpickling` loads it."""

from __future__ import annotations

import copyreg
import functools
import operator
import types
from collections.abc import Callable
from typing import Any

from cloudpickle import cloudpickle

from fal_notebook.runner import type_aliases
from fal_notebook.runner.unpickling import enum_of, set_enum_state

# What enum itself knows of a member.
_OF_ENUM = frozenset({"_value_", "_name_", "__objclass__", "_sort_order_"})
_VALIDATING = "ValidateCallWrapper"
# What pydantic has built of a class.
BUILT = ("__pydantic_core_schema__", "__pydantic_validator__", "__pydantic_serializer__")
_dispatcher: Any = functools.singledispatch(lambda _: None)


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Pickles what cloudpickle would make another thing of, or refuse."""

    def reducer_override(self, obj: Any) -> Any:
        """Reduce an object; called for all but plain builtin values."""
        if type(obj) is types.CellType:
            return _reduced_variable(obj)
        if (found := reduced(obj)) is not None:
            return found
        if is_dispatcher(obj) and not cloudpickle._should_pickle_by_reference(obj):
            return _reduced_dispatcher(obj)
        made = super().reducer_override(obj)
        if type(made) is tuple and made[0] is cloudpickle._make_skeleton_enum:
            return _reduced_enum(obj, *made)
        if type(made) is tuple and made[0] is cloudpickle._make_skeleton_class:
            _, _, _, members, _, _ = made[1]
            if vars(obj).get("__slots__"):  # or instances of a copy would have a ``__dict__``
                members["__slots__"] = obj.__slots__
            attributes, _ = made[2]
            # A validator is made of a schema, so all schemas must be whole: those that a model's
            # schema holds come with the fields that are before it.
            for name in filter(attributes.__contains__, BUILT):
                attributes[name] = attributes.pop(name)
        return made

    def _function_getnewargs(self, func: types.FunctionType) -> tuple[Any, ...]:
        """Make a function with the variables of the one around it, which others may share."""
        *parts, _ = super()._function_getnewargs(func)
        return (*parts, func.__closure__)


def is_dispatcher(value: Any) -> bool:
    """Whether `value` is what ``functools.singledispatch`` makes of a function."""
    return type(value) is types.FunctionType and value.__code__ is _dispatcher.__code__


def reduced(value: Any) -> tuple[Any, ...] | None:
    """Return how an exception, ``Model[int]``, or what functools made is pickled, else None.

    These go without the lock that Python before 3.12 gives them, and the cache since 3.13.
    """
    if type(value) is functools.cached_property:
        state = {"attrname": value.attrname, "__doc__": value.__doc__}
        return functools.cached_property, (value.func,), state
    if isinstance(value, BaseException):
        return _reduced_error(value)
    if (filled := filled_model(value)) is not None:
        return operator.getitem, filled
    if (alias := type_aliases.reduced(value)) is not None:
        return alias
    if (given := _of_validate_call(value)) is not None:
        return _validating, (type(value), *given)
    if type(value) is functools.singledispatchmethod:
        return functools.singledispatchmethod, (value.func,), {"dispatcher": value.dispatcher}
    return None


def filled_model(value: Any) -> tuple[Any, tuple[Any, ...]] | None:
    """Return of which generic pydantic model, and for which types, ``Model[int]`` is the class.

    It is made of these wherever it is loaded: there is only one such class for its code.
    """
    about = vars(value).get("__pydantic_generic_metadata__") if isinstance(value, type) else None
    if not about or about["origin"] is None:
        return None
    return about["origin"], about["args"]


def _of_validate_call(value: Any) -> tuple[Any, ...] | None:
    """Return of what pydantic's ``validate_call`` made what it calls; that has no pickle."""
    kind = type(value)
    if (kind.__module__, kind.__name__) != ("pydantic._internal._validate_call", _VALIDATING):
        return None
    if not all(hasattr(value, name) for name in ("function", "config_wrapper", "validate_return")):
        return None  # of an older pydantic
    return value.function, dict(value.config_wrapper.config_dict), value.validate_return


def _validating(kind: Any, function: Any, config: dict[str, Any], validate_return: bool) -> Any:
    """Make it again; it reads the annotations when it is called: names in them may come later."""
    later = {**config, "defer_build": True}
    return kind(function, later, validate_return, function.__globals__)


def _reduced_error(error: BaseException) -> tuple[Any, ...] | None:
    """Spare an exception its ``__init__``, which may take other arguments than its ``args``."""
    kind = type(error)
    own = kind.__reduce__, kind.__reduce_ex__, kind.__new__
    if _is_of_c(kind.__init__) or not all(map(_is_of_c, own)) or kind in copyreg.dispatch_table:
        return None
    made: tuple[Any, ...] = error.__reduce__()  # type: ignore[assignment]
    state = dict(made[2]) if len(made) > 2 else {}
    slots = copyreg._slotnames(kind)  # type: ignore[attr-defined]
    state |= {name: getattr(error, name) for name in slots if hasattr(error, name)}
    return error_of, (kind, made[1]), state or None


def error_of(kind: type[BaseException], args: tuple[Any, ...]) -> BaseException:
    """Return an exception that was made as what it is, and not yet what its class makes of it."""
    error = kind.__new__(kind, *args)
    bases: tuple[Any, ...] = kind.__mro__
    next(base for base in bases if _is_of_c(base.__init__)).__init__(error, *args)
    return error


def _reduced_variable(cell: types.CellType) -> tuple[Any, ...]:
    """Have a variable filled when it is there: what it holds may be a function that uses it."""
    try:
        state = None, {"cell_contents": cell.cell_contents}
    except ValueError:  # nothing was assigned yet
        return cloudpickle._make_empty_cell, ()
    return cloudpickle._make_empty_cell, (), state


def _is_of_c(method: Any) -> bool:
    return not isinstance(method, types.FunctionType)


def _reduced_enum(cls: Any, _: Any, given: tuple[Any, ...], state: Any, *rest: Any) -> Any:
    """Give an enum its aliases too, and its members what ``__new__`` and ``__init__`` made."""
    bases, name, qualname, _, module, identity, _ = given
    every = cls.__members__.items()
    values = {member_name: member._value_ for member_name, member in every}
    mixin = cls._member_type_
    plain = [_new_arguments(mixin, member) for _, member in every] if _has_own_new(cls) else None
    own = {n: {k: v for k, v in vars(m).items() if k not in _OF_ENUM} for n, m in every}
    clsdict, slots = state
    clsdict = {key: value for key, value in clsdict.items() if key not in values}
    parts = bases, name, qualname, values, module, identity, mixin, plain
    return enum_of, parts, ((clsdict, slots), own), None, None, set_enum_state


def _has_own_new(cls: Any) -> bool:
    return isinstance(vars(cls).get("__new_member__"), types.FunctionType)


def _new_arguments(mixin: Any, member: Any) -> tuple[Any, ...]:
    """Return from what the type that is mixed in makes the value that a member is."""
    found: tuple[Any, ...] = getattr(mixin, "__getnewargs__", lambda _: ())(member)
    return found


def cached(function: Callable[..., Any], maxsize: int | None, typed: bool) -> Any:
    """Return a function with an empty cache of its own."""
    return functools.lru_cache(maxsize, typed)(function)


def _reduced_dispatcher(function: Any) -> tuple[Any, ...]:
    names = {name: getattr(function, name) for name in functools.WRAPPER_ASSIGNMENTS}
    state = dict(function.registry), names
    return functools.singledispatch, (function.registry[object],), state, None, None, _dispatch


def _dispatch(function: Any, state: tuple[dict[type, Any], dict[str, Any]]) -> None:
    implementations, names = state
    for kind, implementation in implementations.items():
        function.register(kind, implementation)
    for name, value in names.items():
        setattr(function, name, value)
