"""Loads what `pickles` and payloads hold: classes as they were, without defining them again."""

from __future__ import annotations

import contextlib
import enum
import functools
import io
import operator
import pickle
import sys
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

from cloudpickle import cloudpickle

_HOOK = "__init_subclass__"
_one_at_a_time = threading.RLock()
# The classes that travel by value.
_known_as = cloudpickle._DYNAMIC_CLASS_TRACKER_BY_CLASS


def load(content: bytes, begin: int = 0) -> Any:
    """Return what was pickled from `begin` on; the bytes, which may be many, are not copied."""
    buffer = io.BytesIO(content)
    buffer.seek(begin)
    return Unpickler(buffer).load()


class Unpickler(pickle.Unpickler):
    """Leaves the classes of ``__main__`` alone, and makes others without running their hooks.

    cloudpickle would set each attribute of a class that is there again, to the pickle's copies: its
    methods would no longer see the variables of the notebook, or those of the runner.
    """

    def find_class(self, module: str, name: str) -> Any:
        """Return what the pickle names, or our own way of making a class."""
        return maker(module, name) or super().find_class(module, name)


def maker(module: str, name: str) -> Any:
    """Return our own way of making what the pickle names, None where there is none."""
    return _MAKERS.get(name) if module == cloudpickle.__name__ else None


def _is_own(cls: Any) -> bool:
    """Whether ``__main__`` has this very class under the name that it was defined by."""
    if cls.__module__ != "__main__":
        return False
    try:
        found = operator.attrgetter(cls.__qualname__)(sys.modules["__main__"])
    except AttributeError:
        return False
    return found is cls


def _class(
    kind: type, name: str, bases: tuple[Any, ...], members: dict[str, Any], identity: str, _: Any
) -> Any:
    return _made(identity, bases, functools.partial(_skeleton, kind, name, bases, members))


def enum_of(
    bases: tuple[Any, ...],
    name: str,
    qualname: str,
    values: dict[str, Any],
    module: str,
    identity: str,
    mixin: Any,
    plain: list[tuple[Any, ...]] | None,
) -> Any:
    """Return an enum with its members, aliases too; without running its own ``__new__``.

    Parameters
    ----------
    mixin : type
        What its members are beside, such as bytes.
    plain : list of tuple, optional
        From what `mixin` makes each; only of one with a ``__new__`` of its own.
    """
    members = {member_name: _as_member(value) for member_name, value in values.items()}
    if plain is not None:
        made_from = zip(plain, values.values(), strict=True)
        members = {"__new__": _remade(mixin, iter(made_from)), **members}
    parts = bases, name, qualname, members, module, identity, None
    return _made(identity, bases, functools.partial(cloudpickle._make_skeleton_enum, *parts))


def _as_member(value: Any) -> Any:
    """Have enum take a method for a member; before Python 3.11 none can be one."""
    if sys.version_info >= (3, 11) and hasattr(value, "__get__"):
        return enum.member(value)
    return value


def _remade(mixin: Any, given: Iterator[tuple[Any, Any]]) -> Callable[..., Any]:
    def new(cls: Any, *_: Any) -> Any:
        arguments, value = next(given)
        member = mixin.__new__(cls, *arguments)
        member._value_ = value
        return member

    return new


def set_enum_state(cls: Any, state: Any) -> Any:
    """Set what is in an enum's body, and what its members have beside name and value."""
    if not _is_own(cls):
        of_class, of_members = state
        cloudpickle._class_setstate(cls, of_class)
        for name, values in of_members.items():
            vars(cls.__members__[name]).update(values)
    return cls


def _made(identity: str, bases: tuple[Any, ...], make: Callable[[], Any]) -> Any:
    """Return the class itself where it is known, for one more would be told to its bases."""
    known = cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID.get(identity)
    if known is not None and _is_own(known):
        return known
    with _unheard_of(types.resolve_bases(bases)):
        return cloudpickle._lookup_class_or_track(identity, make())


def _skeleton(kind: Any, name: str, bases: tuple[Any, ...], members: dict[str, Any]) -> Any:
    """Make a class without the ``__new__`` and ``__init__`` of a metaclass of the notebook."""
    imported = next(base for base in kind.__mro__ if base not in _known_as)
    if imported is kind:
        return types.new_class(
            name, bases, {"metaclass": kind}, lambda space: space.update(members)
        )
    resolved = types.resolve_bases(bases)
    generic = {} if resolved is bases else {"__orig_bases__": bases}
    return imported.__new__(kind, name, resolved, {**members, **generic})


@contextlib.contextmanager
def _unheard_of(bases: tuple[Any, ...]) -> Iterator[None]:
    """Have classes of the notebook not hear of a subclass: they did when it was defined.

    What they made of it travels with them. Those that are imported begin anew here, and hear.
    """
    every = {base for direct in bases for base in direct.__mro__ if base in _known_as}
    with _one_at_a_time:
        hooks = {base: vars(base)[_HOOK] for base in every if _HOOK in vars(base)}
        for base in hooks:
            type.__setattr__(base, _HOOK, classmethod(_passing_on(base)))
        try:
            yield
        finally:
            for base, hook in hooks.items():
                type.__setattr__(base, _HOOK, hook)


def _passing_on(base: Any) -> Callable[..., None]:
    def hook(cls: Any, **options: Any) -> None:
        super(base, cls).__init_subclass__(**options)

    return hook


def _set_state(cls: Any, state: Any) -> Any:
    return cls if _is_own(cls) else cloudpickle._class_setstate(cls, state)


_MAKERS = {
    "_make_skeleton_class": _class,
    "_class_setstate": _set_state,
}
