"""Keywords that a TypedDict describes: ``**options: Unpack[Options]`` (PEP 692)."""

from __future__ import annotations

import typing
from typing import Any, NamedTuple, get_args, get_origin

import typing_extensions
from typing_extensions import NotRequired, Required, Unpack, get_type_hints

# In place of a key that was not given.
UNGIVEN: Any = type("Ungiven", (), {})()
_UNPACK = (Unpack, getattr(typing, "Unpack", Unpack))  # typing's own came with Python 3.11
_REQUIRED: Any = Required
_MARKS = (NotRequired, _REQUIRED, getattr(typing_extensions, "ReadOnly", NotRequired))


class Key(NamedTuple):
    """The type of a key, and whether it has to be there."""

    type: Any
    is_required: bool


def unpacked(hint: Any) -> dict[str, Key] | None:
    """Return the keys of the TypedDict that an annotation unpacks; None when it does not."""
    if get_origin(hint) not in _UNPACK:
        return None
    (kind,) = get_args(hint)
    kind = get_origin(kind) or kind  # of ``Unpack[Options[int]]``
    hints = get_type_hints(kind, include_extras=True)
    return {name: _key(found, name in kind.__required_keys__) for name, found in hints.items()}


def _key(hint: Any, is_required: bool) -> Key:
    # A mark in an annotation that was a text is unknown to the class.
    while (mark := get_origin(hint)) in _MARKS:
        is_required = {NotRequired: False, _REQUIRED: True}.get(mark, is_required)
        (hint,) = get_args(hint)
    return Key(hint, is_required)
