"""Keywords that a TypedDict describes: ``**options: Unpack[Options]`` (PEP 692)."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_origin

from typing_extensions import NotRequired, Required, Unpack, get_type_hints

UNGIVEN: Any = inspect.Parameter("UNGIVEN", inspect.Parameter.KEYWORD_ONLY)
_UNPACK = (Unpack, getattr(typing, "Unpack", Unpack))  # typing's own came with Python 3.11
_REQUIRED: Any = Required
_MARKS = (NotRequired, _REQUIRED)


def with_unpacked(
    parameters: list[inspect.Parameter], hints: Mapping[str, Any]
) -> tuple[list[inspect.Parameter], dict[str, Any]]:
    """Return parameters and type hints with each key of an unpacked TypedDict as a keyword.

    A key that need not be there has the default `UNGIVEN`, which no function is to see.
    """
    found = next((p for p in parameters if p.kind is p.VAR_KEYWORD), None)
    hint = hints.get(found.name) if found is not None else None
    if found is None or get_origin(hint) not in _UNPACK:
        return parameters, dict(hints)
    (kind,) = get_args(hint)
    taken = {p.name for p in parameters}
    keys = {name: (mark, key) for name, mark, key in _keys(kind) if name not in taken}
    keywords = [
        found.replace(name=name, kind=found.KEYWORD_ONLY, default=_default(mark), annotation=key)
        for name, (mark, key) in keys.items()
    ]
    rest = [p for p in parameters if p is not found]
    return rest + keywords, {**hints, **{name: key for name, (_, key) in keys.items()}}


def _default(is_required: bool) -> Any:
    return inspect.Parameter.empty if is_required else UNGIVEN


def _keys(kind: Any) -> Iterator[tuple[str, bool, Any]]:
    """Yield the name of each key, whether it has to be there, and its type."""
    kind = get_origin(kind) or kind
    for name, hint in get_type_hints(kind, include_extras=True).items():
        is_required = name in kind.__required_keys__
        # A mark in an annotation that was a text is unknown to `__required_keys__`.
        while (mark := get_origin(hint)) in _MARKS:
            is_required = mark is _REQUIRED
            (hint,) = get_args(hint)
        yield name, is_required, hint
