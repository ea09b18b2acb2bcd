"""What the use of a value leaves in it; it is the same value all the same, to its digest."""

from __future__ import annotations

from typing import Any

# Of a tree of scikit-learn's, the counters of its searches stand here in its state.
_COUNTERS = slice(7, 11)


def unused(value: Any, state: Any) -> Any:
    """Return the state of a value, as it is pickled, without what its use has left in it."""
    kind = type(value)
    if kind.__module__.startswith("sklearn.neighbors._") and type(state) is tuple:
        return (*state[: _COUNTERS.start], *state[_COUNTERS.stop :])
    if kind.__module__.startswith("numpy.ma") and type(state) is tuple:
        # Who prints it fills in what is shown in place of masked values.
        return (*state[:-1], value.view().fill_value)
    return _without_cache(state) if kind.__module__.startswith("pandas.") else state


def _without_cache(state: Any) -> Any:
    """Leave out what pandas keeps of answers that it gave; an empty state is none."""
    if type(state) is tuple:
        return tuple(map(_without_cache, state))
    if type(state) is dict:
        return {name: part for name, part in state.items() if name != "_cache"} or None
    return state
