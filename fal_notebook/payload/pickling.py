"""Picklers on top of cloudpickle: one that writes the payload, one that looks at a single value.

cloudpickle ships most things; what it would ship by a reference to the notebook's ``__main__``
(cached functions, type aliases) or split in two (a module and its functions' globals) is mended.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import io
import operator
import sys
import types
from collections.abc import Iterator, Mapping
from typing import Any

import cloudpickle

from fal_notebook.payload.reductions import Reductions
from fal_notebook.payload.references import (
    CachedFunction,
    attributes_of,
    class_references,
    import_path,
    is_by_value,
    is_class,
    is_function,
    local_module_of,
    scope_of,
    unseen_names,
)
from fal_notebook.runner.pickles import Pickler, cached, filled_model

# What the import system puts into a module and a runner must not inherit.
_NOT_SHIPPED = ("__builtins__", "__loader__", "__spec__", "__cached__")
_PYDANTIC_NAMESPACE = "__pydantic_parent_namespace__"
# dataclasses compares these by identity, so a runner must have its own, not copies.
_SENTINELS = {
    type(value): name
    for name in ("MISSING", "KW_ONLY", "_HAS_DEFAULT_FACTORY")
    if (value := getattr(dataclasses, name, None)) is not None
}
_BASE_GLOBALS = ("__package__", "__name__", "__path__", "__file__")


class _ModuleGlobals:
    """Stands for the globals of a shipped module's functions: the module's own dictionary."""

    def __init__(self, module: types.ModuleType) -> None:
        self._module = module

    def __reduce__(self) -> tuple[Any, ...]:
        return vars, (self._module,)


class PayloadPickler(Pickler):
    """Pickles a function with all that it needs; use inside `local_modules.shipped_by_value`."""

    def __init__(self, file: Any, reductions: Reductions) -> None:
        super().__init__(file, protocol=5)
        self._reductions = reductions
        for name in cloudpickle.list_registry_pickle_by_value():
            module = sys.modules[name]
            self.globals_ref[id(vars(module))] = _ModuleGlobals(module)

    def add_unseen_globals(self, value: Any) -> None:
        """Ship the globals of a function, or class, that cloudpickle misses."""
        if is_class(value):
            scope = scope_of(value)
            names = [reference.name for reference in class_references(value)]
        else:
            scope = value.__globals__
            names = [name for name in unseen_names(value) if name in scope]
        if names and not isinstance(self.globals_ref.get(id(scope)), _ModuleGlobals):
            base = {name: scope[name] for name in _BASE_GLOBALS if name in scope}
            self.globals_ref.setdefault(id(scope), base).update((n, scope[n]) for n in names)

    def reducer_override(self, obj: Any) -> Any:
        """Reduce what cloudpickle would ship wrongly; called for all but plain builtin values."""
        kind = type(obj)
        if _holds_text(obj):
            return _reduce_text_array(obj)
        if kind in _SENTINELS:
            return getattr, (dataclasses, _SENTINELS[kind])
        if kind is types.ModuleType and is_by_value(obj):
            state = {k: v for k, v in vars(obj).items() if k not in _NOT_SHIPPED}
            return types.ModuleType, (obj.__name__,), state
        if kind is types.FunctionType and not is_by_value(obj):
            return self._reduce_imported(obj)
        if kind is CachedFunction and is_by_value(obj):
            return _reduce_cached(obj)
        if is_class(obj) and _PYDANTIC_NAMESPACE in vars(obj) and is_by_value(obj):
            return self._reduce_model(obj)
        if kind in (types.FunctionType, types.CellType) or is_class(obj):
            return super().reducer_override(obj)
        return self._reductions.of(obj)

    def _reduce_imported(self, function: types.FunctionType) -> Any:
        module, path = import_path(function) or ("", "")
        if (module, path) == (function.__module__, function.__qualname__):
            return super().reducer_override(function)  # by a plain reference
        return operator.attrgetter(path), (sys.modules[module],)

    def _reduce_model(self, model: Any) -> Any:
        """Reduce a pydantic model without the namespace it was defined in: that is the notebook.

        It serves to resolve forward references, so they are resolved here.
        """
        if filled_model(model) is not None:
            return super().reducer_override(model)
        if not model.__pydantic_complete__:
            model.model_rebuild(raise_errors=False)
        reduced = super().reducer_override(model)
        members: dict[str, Any] = reduced[2][0]
        members.pop(_PYDANTIC_NAMESPACE, None)
        return reduced


def is_array(value: Any) -> bool:
    """Whether it is numpy's array, of no subclass; numpy is not loaded for the question."""
    return type(value) is getattr(sys.modules.get("numpy"), "ndarray", None)


def _holds_text(value: Any) -> bool:
    """Whether it is numpy's array of strings, perhaps within records; of a loaded numpy only."""
    if not is_array(value) or not value.size:
        return False
    dtype = value.dtype
    fields = [field[0] for field in (dtype.fields or {}).values()]
    return not dtype.hasobject and any(part.base.kind in "US" for part in (dtype, *fields))


def _reduce_text_array(array: Any) -> tuple[Any, ...]:
    """Reduce to plain strings: numpy's own four bytes per letter would hide keys from the scan."""
    return sys.modules["numpy"].array, (array.tolist(), array.dtype)


def _reduce_cached(function: Any) -> tuple[Any, ...]:
    options = function.cache_parameters()
    state = {k: v for k, v in vars(function).items() if k != "cache_parameters"}
    return cached, (function.__wrapped__, options["maxsize"], options["typed"]), state


class ValuePickler(PayloadPickler):
    """Pickles one value without the notebook's functions and classes that it refers to.

    Attributes
    ----------
    found : list
        The functions, classes and modules that were left out, in order.
    referred : set of str
        Modules of the functions and classes that are shipped by import path.
    holds_file : bool
        There is an open file in it; cloudpickle ships its text in place of it.
    """

    def __init__(self, file: Any, root: Any, reductions: Reductions) -> None:
        super().__init__(file, reductions)
        self.found: list[Any] = []
        self.referred: set[str] = set()
        self.holds_file = False
        self._root = root

    def reducer_override(self, obj: Any) -> Any:
        """Replace a by-value function, class or module by its name, unless it is the root."""
        nameable = is_function(obj) or is_class(obj) or isinstance(obj, types.ModuleType)
        if nameable and obj is not self._root and not self._belongs_to_root(obj):
            if is_by_value(obj):
                self.found.append(local_module_of(obj) or obj)
                return str, (obj.__name__,)
            name = obj.__name__ if isinstance(obj, types.ModuleType) else obj.__module__
            self.referred.add(str(name))
        if type(obj) is io.TextIOWrapper and obj not in (sys.stdout, sys.stderr):
            self.holds_file = True
        return super().reducer_override(obj)

    def _belongs_to_root(self, obj: Any) -> bool:
        home = obj if isinstance(obj, types.ModuleType) else local_module_of(obj)
        return home is not None and home is self._root


class CountingSink:
    """A file that counts what is written and keeps nothing."""

    def __init__(self) -> None:
        self.size = 0

    def write(self, data: Any) -> int:
        """Count `data`, a bytes-like object."""
        length = memoryview(data).nbytes
        self.size += length
        return length


class SizeExceeded(Exception):  # noqa: N818  a signal, not an error for people
    """More was written than a `LimitedBuffer` takes."""


class LimitedBuffer(io.BytesIO):
    """A buffer that stops a pickler once more than `limit` bytes are written."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit

    def write(self, data: Any) -> int:
        """Write `data`, or raise `SizeExceeded`."""
        if self.tell() + memoryview(data).nbytes > self._limit:
            raise SizeExceeded
        return super().write(data)


def pickled_alone(value: Any, sink: Any, reductions: Reductions | None = None) -> ValuePickler:
    """Pickle what is the value's own into `sink`: a function's code, a class's members, data.

    A function's globals, closure variables and defaults are not its own; they have names.
    """
    pickler = ValuePickler(sink, value, reductions or Reductions())
    pickler.dump(_own_parts(value) if isinstance(value, types.FunctionType) else value)
    return pickler


def own_bytes(value: Any) -> bytes:
    """Return the pickle of what is the value's own."""
    buffer = io.BytesIO()
    pickled_alone(value, buffer)
    return buffer.getvalue()


def can_pickle(value: Any) -> bool:
    """Whether the value's own parts can be pickled."""
    return pickling_error(value) is None


def pickling_error(value: Any) -> Exception | None:
    """Return the error that pickling the value's own parts raises, if it does."""
    try:
        pickled_alone(value, CountingSink())
    except Exception as error:  # any class may raise anything from its __reduce__
        return error
    return None


def parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the labelled parts of a value, to find which of them cannot be pickled."""
    if isinstance(value, dict):
        yield from ((f"[{key!r}]", part) for key, part in value.items())
        yield from ((f".keys()[{index}]", key) for index, key in enumerate(value))
        yield from _attributes(value)
    elif isinstance(value, (list, tuple)):
        yield from ((f"[{index}]", part) for index, part in enumerate(value))
        yield from _attributes(value)
    elif isinstance(value, (set, frozenset)):
        yield from ((f"{{{part!r}}}", part) for part in value)
        yield from _attributes(value)
    elif isinstance(value, enum.EnumMeta):
        members: Mapping[str, Any] = value.__members__
        for name, member in members.items():
            yield from ((f".{name}{label}", part) for label, part in _attributes(member))
        yield from _attributes(value)
    elif is_array(value) and value.dtype.hasobject:
        yield from ((f".flat[{index}]", part) for index, part in enumerate(value.flat))
    elif _of_pandas(value, "DataFrame"):
        yield from ((f".{name}", getattr(value, name)) for name in ("attrs", "index"))
        yield from ((f"[{name!r}]", column) for name, column in value.items())
    elif _of_pandas(value, "Series"):
        yield from ((f".{name}", getattr(value, name)) for name in ("attrs", "index"))
        yield from ((f".iloc[{index}]", part) for index, part in enumerate(value))
    else:
        yield from _attributes(value)
        yield from _reduced(value)


def _of_pandas(value: Any, name: str) -> bool:
    kind = getattr(sys.modules.get("pandas"), name, None)
    return kind is not None and isinstance(value, kind)


def _reduced(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what a value says that it is to be pickled as, as far as it says it."""
    if is_class(value) or is_function(value) or isinstance(value, types.ModuleType):
        return
    try:
        found = value.__reduce_ex__(5)
    except Exception:  # any class may raise anything there
        return
    if not isinstance(found, tuple):
        return
    args, state, items, pairs = (*found[1:5], *[None] * 4)[:4]
    yield from ((f"[{index}]", part) for index, part in enumerate(items or ()))
    yield from ((f"[{key!r}]", part) for key, part in pairs or ())
    for part in state if isinstance(state, tuple) else (state,):
        named = isinstance(part, Mapping)
        yield from ((f".{key}", value) for key, value in part.items()) if named else ()
        yield ".__getstate__()", part
    path = ".args" if isinstance(value, BaseException) else ".__reduce__()[1]"
    yield from ((f"{path}[{index}]", part) for index, part in enumerate(args or ()))


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    own = _attribute(value, "__dict__")
    names: dict[str, Any] = dict(own) if isinstance(own, Mapping) else {}
    for base in type(value).__mro__:
        slots = vars(base).get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            names[slot] = _attribute(value, slot)
    if isinstance(value, functools.partial):
        names |= {"func": value.func, "args": value.args, "keywords": value.keywords}
    elif isinstance(value, types.MethodType):
        names = {"__self__": value.__self__}
    skipped = (*_NOT_SHIPPED, "__dict__", "__weakref__", "_abc_impl")
    yield from ((f".{name}", part) for name, part in names.items() if name not in skipped)


def _attribute(value: Any, name: str) -> Any:
    """Return an attribute, None where there is none, or the value's class fails to tell."""
    try:
        return getattr(value, name, None)
    except Exception:  # of a __getattr__ of the user's
        return None


def _own_parts(function: types.FunctionType) -> tuple[Any, ...]:
    own = attributes_of(function)
    return function.__code__, function.__name__, own, function.__annotations__
