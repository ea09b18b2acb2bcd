"""What an annotation is, on every Python alike."""

from __future__ import annotations

from types import UnionType
from typing import Any, Union, get_args, get_origin


def is_class_of(annotation: Any, *kinds: type) -> bool:
    """Say whether it is a class of `kinds`; Python 3.10 takes ``list[int]`` for a class."""
    plain = isinstance(annotation, type) and get_origin(annotation) is None
    return plain and issubclass(annotation, kinds)


def without_none(annotation: Any) -> Any:
    """Return what an annotation says besides None, if that is one thing."""
    if get_origin(annotation) not in (Union, UnionType):
        return annotation
    kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
    return kinds[0] if len(kinds) == 1 else annotation
