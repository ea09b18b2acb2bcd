"""Rules of a ``.dockerignore``: which paths of a folder are left out, as Docker decides it."""

from __future__ import annotations

import functools
import posixpath
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

# What is left out where nobody says what: what fal leaves out, at any depth.
DEFAULTS = tuple(
    f"**/{name}"
    for name in (
        *(".git", ".gitignore", ".dockerignore", "Dockerfile", "Dockerfile.*", "*.md"),
        *("__pycache__", "*.pyc", ".DS_Store", ".venv", "venv", ".env", "node_modules"),
    )
)
_WILD = re.compile(r"[*?\[\\]")


@dataclass(frozen=True)
class _Rule:
    pattern: str
    expression: re.Pattern[str]
    included: bool


class IgnoreRules:
    """The last rule that matches a path, or a folder above it, decides.

    Parameters
    ----------
    patterns : iterable of str
        Relative to the context's root; ``*`` stays in one folder, ``**`` does not, and what begins
        with ``!`` is in again.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        self._rules = list(_rules(patterns))
        self._again = [rule.pattern for rule in self._rules if rule.included]

    def leaves_out(self, path: str) -> bool:
        """Say whether a path, relative and with ``/``, is left out."""
        names = [path, *_above(path)]
        for rule in reversed(self._rules):
            if any(map(rule.expression.fullmatch, names)):
                return not rule.included
        return False

    def may_hold(self, folder: str) -> bool:
        """Say whether something in a folder that is left out may be in again."""
        return any(
            _WILD.search(pattern) or f"{pattern}/".startswith(f"{folder}/")
            for pattern in self._again
        )


def read_patterns(text: str) -> list[str]:
    """Return the patterns of a ``.dockerignore``'s text."""
    lines = text.removeprefix("\ufeff").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


@functools.lru_cache
def glob(pattern: str) -> re.Pattern[str]:
    """Return what matches the paths of a pattern."""
    return re.compile("".join(_pieces(pattern)), re.DOTALL)


def _above(path: str) -> Iterator[str]:
    while path := posixpath.dirname(path):
        yield path


def _rules(patterns: Iterable[str]) -> Iterator[_Rule]:
    for given in patterns:
        text = given.strip()
        included = text.startswith("!")
        cleaned = posixpath.normpath(text.removeprefix("!").strip() or ".").lstrip("/")
        if cleaned and cleaned != ".":
            yield _Rule(cleaned, glob(cleaned), included)


def _pieces(pattern: str) -> Iterator[str]:
    at = 0
    while at < len(pattern):
        rest = pattern[at:]
        klass = re.match(r"\[\^?\]?(?:\\.|[^\]\\])*\]", rest)
        if rest.startswith("**/"):
            at, piece = at + 3, "(?:.*/)?"
        elif rest.startswith("**"):
            at, piece = at + 2, ".*"
        elif rest[0] == "*":
            at, piece = at + 1, "[^/]*"
        elif rest[0] == "?":
            at, piece = at + 1, "[^/]"
        elif rest[0] == "\\" and len(rest) > 1:
            at, piece = at + 2, re.escape(rest[1])
        elif klass is not None and _compiles(klass[0]):
            at, piece = at + klass.end(), klass[0]
        else:
            at, piece = at + 1, re.escape(rest[0])
        yield piece


def _compiles(expression: str) -> bool:
    try:
        re.compile(expression)
    except re.error:
        return False
    return True
