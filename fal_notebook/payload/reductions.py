"""What objects reduce to when they are pickled, asked of each only once per capture.

A ``__reduce__`` may take seconds and make many megabytes, while a value is measured, pickled and
hashed.
"""

from __future__ import annotations

import sys
from typing import Any

import cloudpickle

from fal_notebook.payload import shared_objects

_ITERATORS = slice(3, 5)  # items of a list and of a dict, in what ``__reduce__`` returns


class Reductions:
    """The reductions of one capture; its objects stay alive as long as it does."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Any, Any]] = {}

    def of(self, value: Any) -> Any:
        """Return what a pickler of protocol 5 would ask of `value`: a tuple, or a global's name."""
        known = self._known.get(id(value))
        if known is None:
            known = self._known[id(value)] = (value, _kept(_reduced(value)))
        return _given(known[1])


def _reduced(value: Any) -> Any:
    if (found := shared_objects.reduced(value)) is not None:
        return found
    starlette = sys.modules.get("starlette.datastructures")
    if starlette is not None and type(value) is starlette.State:
        return starlette.State, (dict(value._state),)  # its own way recurses without end
    reducer = cloudpickle.Pickler.dispatch_table.get(type(value))
    return reducer(value) if reducer is not None else value.__reduce_ex__(5)


def _kept(reduced: Any) -> Any:
    """Return a reduction whose iterators can be run through again."""
    if not isinstance(reduced, tuple) or len(reduced) < 4:
        return reduced
    items = (None if part is None else list(part) for part in reduced[_ITERATORS])
    return (*reduced[:3], *items, *reduced[5:])


def _given(kept: Any) -> Any:
    if not isinstance(kept, tuple) or len(kept) < 4:
        return kept
    items = (None if part is None else iter(part) for part in kept[_ITERATORS])
    return (*kept[:3], *items, *kept[5:])
