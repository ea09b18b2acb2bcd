"""Inputs of requests as bounded text, whatever they are."""

from __future__ import annotations

import reprlib
from typing import Any

LONGEST = 16 * 1024


def cut(text: str, limit: int, amid: bool = False) -> str:
    """Return text that can be written everywhere, marked where it was cut: at its end, or amid."""
    text = text.encode(errors="backslashreplace").decode()
    if len(text) <= limit:
        return text
    mark = f"… ({len(text)} characters in all)"
    return f"{text[: limit // 2]}\n{mark}\n{text[-limit // 2 :]}" if amid else text[:limit] + mark


def body(content: bytes) -> str:
    """Return a body of text; of a long one its beginning."""
    text = content[:LONGEST].decode(errors="replace")
    return text if len(content) <= LONGEST else f"{text}… ({len(content)} bytes in all)"


def call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Return arguments as they stand in a call; what the user's own repr raises is no matter."""
    brief = _Brief()
    try:
        parts = [brief.repr(value) for value in args]
        parts += [f"{name}={brief.repr(value)}" for name, value in kwargs.items()]
    except Exception as error:
        return f"(the arguments cannot be shown: {type(error).__name__})"
    return cut(", ".join(parts), LONGEST)


class _Brief(reprlib.Repr):
    """A repr that stops when it has become long, so that large values cost little."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 20
        for name in ("tuple", "list", "array", "dict", "set", "frozenset", "deque"):
            setattr(self, f"max{name}", 1000)
        self.maxstring = self.maxlong = self.maxother = LONGEST
        self._left = LONGEST

    def repr1(self, x: Any, level: int) -> str:
        if self._left <= 0:
            return "…"
        text = super().repr1(x, level)
        if not isinstance(x, (tuple, list, dict, set, frozenset)):
            self._left -= len(text)
        return text

    def repr_bytes(self, x: bytes, level: int) -> str:
        return repr(x) if len(x) <= LONGEST else f"{x[:LONGEST]!r}…"
