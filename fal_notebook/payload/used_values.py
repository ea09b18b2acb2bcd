"""What the use of a value leaves in it; it is the same value all the same, to its digest."""

from __future__ import annotations

import functools
import inspect
from typing import Any

# Of a tree of scikit-learn's, the counters of its searches stand here in its state.
_COUNTERS = slice(7, 11)
_NOTHING = object()


def unused(value: Any, state: Any) -> Any:
    """Return the state of a value, as it is pickled, without what its use has left in it."""
    kind = type(value)
    if type(state) is tuple and kind.__module__.startswith("sklearn.neighbors._"):
        return (*state[: _COUNTERS.start], *state[_COUNTERS.stop :])
    if type(state) is tuple and kind.__module__.startswith("numpy.ma"):
        # Who prints it fills in what is shown in place of masked values.
        return (*state[:-1], value.view().fill_value)
    if type(state) is dict:
        state = {name: part for name, part in state.items() if not _is_kept_answer(kind, name)}
    if kind.__module__.startswith("pandas."):
        left = _without_cache(state)
        return None if left is _NOTHING else left
    return state


def _is_kept_answer(kind: type, name: str) -> bool:
    """Say whether an attribute is what was found out of the others, and kept."""
    if kind.__module__.startswith("scipy.sparse") and name.startswith("_has_"):
        return True
    found = inspect.getattr_static(kind, name, None)
    return isinstance(found, functools.cached_property)


def _without_cache(state: Any) -> Any:
    """Leave out what pandas keeps of answers that it gave, and what was nothing but that."""
    if type(state) is tuple:
        parts = map(_without_cache, state)
        return tuple(part for part in parts if part is not _NOTHING)
    if type(state) is dict:
        return {name: part for name, part in state.items() if name != "_cache"} or _NOTHING
    return state
