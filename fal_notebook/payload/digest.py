"""A digest of functions and values by what they mean, the same in every process.

Pickles will not do: their bytes hold set order (the hash seed), file names and random class ids.
So each value is hashed from its parts, in a canonical order; classes are left to `class_parts`.
"""

from __future__ import annotations
import __future__

import collections
import functools
import hashlib
import marshal
import os
import pickle
import struct
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic import TypeAdapter

from fal_notebook.payload.class_parts import class_parts
from fal_notebook.payload.pickling import is_array
from fal_notebook.payload.reductions import Reductions
from fal_notebook.payload.references import (
    CachedFunction,
    attributes_of,
    class_references,
    is_by_value,
    is_class,
    is_function,
    named_references,
)
from fal_notebook.payload.sources import source_of
from fal_notebook.payload.used_values import unused
from fal_notebook.runner import type_aliases
from fal_notebook.runner.pickles import filled_model

_SCALARS = {type(None), bool, int, float, complex, str, bytes, type(...)}
_CHANGEABLE = {
    *(list, dict, set, bytearray, types.SimpleNamespace),
    *(collections.deque, collections.defaultdict, collections.OrderedDict, collections.Counter),
}
# Set in all cells after one that has the import; the annotations themselves tell what it changes.
_LATER_ANNOTATIONS = __future__.annotations.compiler_flag
_ALIASES: tuple[Any, ...] = (
    *(typing.TypeVar, typing.ParamSpec, typing.NewType),
    *(type_aliases.VARIADIC, *type_aliases.KINDS),
)


def digest_of(value: Any, reductions: Reductions | None = None) -> str:
    """Return the SHA-256 hex digest of a value and all that it refers to.

    Parameters
    ----------
    value : Any
        Anything. Call it inside `local_modules.shipped_by_value`, or their code is left out.
    reductions : Reductions, optional
        What is known of values that were pickled before.

    Returns
    -------
    str
        64 hex digits. What cannot be hashed counts as changed: it gives another digest each time.
    """
    return _Digester(reductions or Reductions()).digest(value).hex()


def definition_digest(cls: type) -> str:
    """Return the digest of a class by its code, whatever that refers to: 64 hex digits."""
    return _Digester(Reductions(), with_references=False).digest(cls).hex()


class _Digester:
    def __init__(self, reductions: Reductions, with_references: bool = True) -> None:
        self._reductions = reductions
        self._with_references = with_references
        self._done: dict[int, tuple[int, bytes]] = {}  # in which order values were met
        self._depth: dict[int, int] = {}  # values being hashed, to end cycles
        self._alive: list[Any] = []  # an id is only good while its object lives

    def digest(self, value: Any) -> bytes:
        if type(value) in _SCALARS:
            return _hash(b"scalar", marshal.dumps(value, 2))
        key = id(value)
        if key in self._done:
            number, found = self._done[key]
            # Of what can change it counts that it is the same one.
            again = type(value) in _CHANGEABLE or is_array(value) or is_by_value(type(value))
            return _hash(b"again", struct.pack("<q", number)) if again else found
        if key in self._depth:
            return _hash(b"cycle", struct.pack("<q", self._depth[key]))
        self._depth[key] = len(self._depth)
        self._alive.append(value)
        try:
            found = self._compound(value)
        except Exception:  # a value's own code may raise anything; not hashable means changed
            found = os.urandom(32)
        finally:
            del self._depth[key]
        self._done[key] = len(self._done), found
        return found

    def _compound(self, value: Any) -> bytes:
        for test, method in _METHODS:
            if test(value):
                return method(self, value)
        return self._by_reduction(value)

    def _sequence(self, value: Any) -> bytes:
        tag = type(value).__name__.encode()
        if set(map(type, value)) <= _SCALARS:  # marshal 2 writes no references: canonical and fast
            return _hash(tag, b"scalars", marshal.dumps(value, 2))
        return _hash(tag, *map(self.digest, value))

    def _dict(self, value: Mapping[Any, Any]) -> bytes:
        """Hash a dictionary in its own order, which code may go by."""
        if {*map(type, value), *map(type, value.values())} <= _SCALARS:
            return _hash(b"dict", b"scalars", marshal.dumps(list(value.items()), 2))
        return _hash(b"dict", *(self.digest(part) for item in value.items() for part in item))

    def _names(self, value: Mapping[str, Any]) -> bytes:
        """Hash names and what they stand for, in whatever order they came to be."""
        ordered = sorted(value)
        return _hash(b"names", marshal.dumps(ordered, 2), *(self.digest(value[k]) for k in ordered))

    def _set(self, value: Iterable[Any]) -> bytes:
        return _hash(type(value).__name__.encode(), *sorted(map(self._isolated, value)))

    def _set_of_a_kind(self, value: Any) -> bytes:
        """Hash a set of a class of its own, whose order follows the hash seed too."""
        kind, (items,), *state = self._reductions.of(value)
        self._alive.append((items, state))
        return _hash(b"a set", self.digest(kind), self._set(items), self.digest(state))

    def _isolated(self, value: Any) -> bytes:
        """Hash without what was hashed before, so that the order of visits leaves no trace."""
        if type(value) in _SCALARS:
            return self.digest(value)
        done, self._done = self._done, {}
        try:
            return self.digest(value)
        finally:
            self._done = done

    def _module(self, value: types.ModuleType) -> bytes:
        name = value.__name__
        if not is_by_value(value) and sys.modules.get(name) is value:
            return _hash(b"module", name.encode(), _version(name))
        public = {k: v for k, v in vars(value).items() if not k.startswith("__")}
        return _hash(b"local module", name.encode(), self._names(public))

    def _imported(self, value: Any) -> bytes:
        path = f"{value.__module__}:{value.__qualname__}"
        return _hash(b"import", path.encode(), _version(str(value.__module__)))

    def _function(self, value: types.FunctionType) -> bytes:
        own = attributes_of(value)
        attributes = {k: v for k, v in own.items() if k != "__wrapped__"}
        wrapped = own.get("__wrapped__")
        found = named_references(value) if self._with_references else ()
        references = [tuple(r) for r in sorted(found, key=_name)]
        names = value.__name__, value.__qualname__, value.__doc__
        shared = list(map(self._number, value.__closure__ or ()))
        parts = (source_of(value), value.__code__, names, references, shared, value.__annotations__)
        return _hash(b"function", *map(self.digest, (*parts, attributes, wrapped)))

    def _number(self, cell: types.CellType) -> int:
        """Say which variable of a function around it is meant: two functions may share one."""
        return self._done.setdefault(id(cell), (len(self._done), b""))[0]

    def _cached(self, value: Any) -> bytes:
        own = {k: v for k, v in vars(value).items() if k not in ("cache_parameters", "__wrapped__")}
        parts = value.cache_parameters(), value.__wrapped__, own
        return _hash(b"cached", *map(self.digest, parts))

    def _code(self, code: types.CodeType) -> bytes:
        flags = code.co_flags & ~_LATER_ANNOTATIONS
        counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, flags)
        names = (code.co_name, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        table = getattr(code, "co_exceptiontable", b"")
        return self.digest(("code", counts, names, code.co_code, table, code.co_consts))

    def _class(self, cls: type) -> bytes:
        found = sorted(class_references(cls), key=_name) if self._with_references else []
        parts = self.digest(source_of(cls)), self._names(class_parts(cls))
        return _hash(b"class", *parts, self.digest([tuple(r) for r in found]))

    def _array(self, array: Any) -> bytes:
        kind = array.dtype.descr if array.dtype.names else array.dtype.str
        flags = array.flags.fnc, array.flags.writeable  # a runner has it in the same order
        head = repr((kind, array.shape, flags))
        if array.dtype.names:  # field by field, for the padding between them may hold anything
            return _hash(
                b"record", head.encode(), *(self._array(array[n]) for n in array.dtype.names)
            )
        if array.dtype.hasobject:
            return _hash(b"objects", head.encode(), self.digest(array.ravel().tolist()))
        flat = array.ravel(order="C")
        data = flat.view("u1") if flat.size and array.dtype.itemsize else flat.tobytes()
        return _hash(b"array", head.encode(), data)

    def _alias(self, value: Any) -> bytes:
        names = ("__name__", "__bound__", "__constraints__", "__covariant__", "__supertype__")
        parts = [getattr(value, name, None) for name in names]
        if isinstance(value, type_aliases.KINDS):
            parts.append(type_aliases.value_of(value))
        return _hash(b"alias", self.digest(parts))

    def _filled(self, value: Any) -> bytes:
        """Hash of which generic model, and for which types; pydantic's own refer to addresses."""
        return _hash(b"filled", self.digest(filled_model(value)))

    def _adapter(self, value: Any) -> bytes:
        """Hash of which type it is; what pydantic has made of that differs each time."""
        return _hash(b"adapter", *map(self.digest, (value._type, value._config)))

    def _forward(self, value: Any) -> bytes:
        """Hash what a name in quotes says, not what became of it."""
        return _hash(b"forward", self.digest((value.__forward_arg__, value.__forward_module__)))

    def _buffer(self, value: pickle.PickleBuffer) -> bytes:
        return _hash(b"buffer", value.raw())

    def _by_reduction(self, value: Any) -> bytes:
        reduced = self._reductions.of(value)
        if isinstance(reduced, str):
            module = getattr(value, "__module__", None)  # NotImplemented has none
            # By name, as Cython's functions are of a class that no module has.
            return _hash(b"global", self.digest((type(value).__qualname__, module, reduced)))
        self._alive.append(reduced)
        padded: list[Any] = [*reduced, *[None] * (6 - len(reduced))]
        padded[2] = _without_addresses(unused(value, padded[2]))
        padded[3:5] = list(padded[3] or ()), dict(padded[4] or ())
        return _hash(b"object", *map(self.digest, padded))


_METHODS: tuple[tuple[Callable[[Any], bool], Callable[[_Digester, Any], bytes]], ...] = (
    (lambda v: type(v) in (list, tuple), _Digester._sequence),
    (lambda v: type(v) in (dict, types.MappingProxyType), _Digester._dict),
    (lambda v: type(v) in (set, frozenset), _Digester._set),
    (lambda v: isinstance(v, (set, frozenset)) and _is_pickled_as_set(v), _Digester._set_of_a_kind),
    (is_array, _Digester._array),
    (lambda v: type(v) is pickle.PickleBuffer, _Digester._buffer),
    (lambda v: isinstance(v, types.ModuleType), _Digester._module),
    (lambda v: (is_function(v) or is_class(v)) and not is_by_value(v), _Digester._imported),
    (lambda v: isinstance(v, types.FunctionType), _Digester._function),
    (lambda v: isinstance(v, CachedFunction), _Digester._cached),
    (lambda v: filled_model(v) is not None, _Digester._filled),
    (is_class, _Digester._class),
    (lambda v: isinstance(v, types.CodeType), _Digester._code),
    (lambda v: isinstance(v, _ALIASES), _Digester._alias),
    (lambda v: type(v) is typing.ForwardRef, _Digester._forward),
    (lambda v: type(v) is TypeAdapter, _Digester._adapter),
)


def _is_pickled_as_set(value: Any) -> bool:
    kind: Any = type(value)
    plain = kind.__reduce_ex__ is object.__reduce_ex__
    return plain and kind.__reduce__ in (set.__reduce__, frozenset.__reduce__)


def _without_addresses(state: Any) -> Any:
    """Say of which attribute an attribute holds the `id`: the number differs in each process."""
    if type(state) is not dict or not any(type(v) is int for v in state.values()):
        return state
    names = {id(v): k for k, v in state.items() if type(v) is not int}
    return {
        k: ("address of", names[v]) if type(v) is int and v in names else v
        for k, v in state.items()
    }


@functools.lru_cache(maxsize=256)
def _version(module: str) -> bytes:
    top = sys.modules.get(module.split(".")[0])
    version = getattr(top, "__version__", "")
    return version.encode() if isinstance(version, str) else b""


def _hash(*parts: Any) -> bytes:
    """Hash bytes-like parts, each after its length."""
    state = hashlib.sha256()
    for part in parts:
        state.update(struct.pack("<q", memoryview(part).nbytes))
        state.update(part)
    return state.digest()


def _name(reference: Any) -> tuple[str, str]:
    return reference.how, reference.name
