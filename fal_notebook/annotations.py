"""What an annotation is, on every Python alike."""

from __future__ import annotations

from typing import Any, get_origin


def is_class_of(annotation: Any, *kinds: type) -> bool:
    """Say whether it is a class of `kinds`; Python 3.10 takes ``list[int]`` for a class."""
    plain = isinstance(annotation, type) and get_origin(annotation) is None
    return plain and issubclass(annotation, kinds)
