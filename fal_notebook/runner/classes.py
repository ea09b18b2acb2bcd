"""How classes of the notebook travel: they keep their slots, and who has one keeps its own."""

from __future__ import annotations

import functools
import operator
import pickle
import sys
from collections.abc import Callable
from typing import Any

from cloudpickle import cloudpickle


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Pickles what cloudpickle would make another thing of, or refuse."""

    def reducer_override(self, obj: Any) -> Any:
        """Reduce an object; called for all but plain builtin values."""
        if type(obj) is functools.cached_property:
            return reduced_property(obj)
        reduced = super().reducer_override(obj)
        if type(reduced) is tuple and reduced[0] is cloudpickle._make_skeleton_class:
            _, _, _, members, _, _ = reduced[1]
            if vars(obj).get("__slots__"):  # or instances of a copy would have a ``__dict__``
                members["__slots__"] = obj.__slots__
        return reduced


def reduced_property(value: functools.cached_property[Any]) -> tuple[Any, ...]:
    """Return how a cached property is pickled: without the lock that Python had before 3.12."""
    state = {"attrname": value.attrname, "__doc__": value.__doc__}
    return functools.cached_property, (value.func,), state


class Unpickler(pickle.Unpickler):
    """Leaves the classes of ``__main__`` alone.

    cloudpickle would set each attribute of such a class again, to the pickle's copies: its methods
    would no longer see the variables of the notebook, or those of the runner.
    """

    def find_class(self, module: str, name: str) -> Any:
        """Return what the pickle names, or our own way of making a class."""
        ours = _MAKERS.get(name) if module == cloudpickle.__name__ else None
        return ours or super().find_class(module, name)


def _is_own(cls: Any) -> bool:
    """Whether ``__main__`` has this very class under the name that it was defined by."""
    if cls.__module__ != "__main__":
        return False
    try:
        found = operator.attrgetter(cls.__qualname__)(sys.modules["__main__"])
    except AttributeError:
        return False
    return found is cls


def _made(make: Callable[..., Any], place: int, *parts: Any) -> Any:
    """Return the class itself, for one more would be told to its bases and metaclass."""
    known = cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID.get(parts[place])
    return known if known is not None and _is_own(known) else make(*parts)


def _set_state(cls: Any, state: Any) -> Any:
    return cls if _is_own(cls) else cloudpickle._class_setstate(cls, state)


_MAKERS = {
    "_make_skeleton_class": functools.partial(_made, cloudpickle._make_skeleton_class, 4),
    "_make_skeleton_enum": functools.partial(_made, cloudpickle._make_skeleton_enum, 5),
    "_class_setstate": _set_state,
}
