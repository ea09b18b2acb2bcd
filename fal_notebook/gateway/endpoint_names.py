"""Under which name a request is counted: an endpoint of the app, and few others."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from typing import Any

# What has no name of its own is counted here.
OTHER = "(other)"
# So many paths have a name that an app's schema does not know.
MOST = 50
# No name or template is looked for in a path of more characters: callers choose it.
LONGEST = 500


class EndpointNames:
    """The names of one app's endpoints.

    Those of its OpenAPI document are always told apart, by their template where they have one. Any
    other path gets a name when the app has answered it well, while there is room: callers who try
    paths at random all get `OTHER`.

    Parameters
    ----------
    known : callable
        Gives the names that were counted before; asked once, and only for such a path.
    """

    def __init__(self, known: Callable[[], Collection[str]]) -> None:
        self._known = known
        self._extra: set[str] | None = None
        self._document: dict[str, Any] = {}
        self._paths: Collection[str] = frozenset()
        self._templates: list[str] = []
        self._pattern: re.Pattern[str] | None = None

    def of(self, path: bytes, status: int, document: dict[str, Any]) -> str:
        """Return the name for a path that an app of this document has answered so."""
        if document is not self._document:
            self._read(document)
        name = path.decode("latin-1")
        if name not in self._paths:  # most apps answer both forms, as FastAPI does
            name = name.rstrip("/") or "/"
        if name in self._paths:
            return name
        if len(name) > LONGEST:
            return OTHER
        found = self._pattern.fullmatch(name) if self._pattern is not None else None
        if found is not None and found.lastindex is not None:
            return self._templates[found.lastindex - 1]
        return self._other(name, status)

    def _read(self, document: dict[str, Any]) -> None:
        paths = document.get("paths")
        self._document = document
        self._paths = frozenset(paths if isinstance(paths, dict) else ())
        self._templates = sorted(path for path in self._paths if "{" in path)
        either = "|".join(f"({_pattern(path)})" for path in self._templates)
        self._pattern = re.compile(either) if either else None

    def _other(self, name: str, status: int) -> str:
        if self._extra is None:
            self._extra = set(self._known()) - {OTHER}
        if name in self._extra:
            return name
        well = status == 101 or 200 <= status < 400
        if not (well and name.isprintable()) or len(self._extra) >= MOST:
            return OTHER  # a terminal shows the name
        self._extra.add(name)
        return name


def _pattern(path: str) -> str:
    """Return what a path of this template looks like; ``{x:path}`` takes slashes too."""
    parts = re.split(r"(\{[^{}]*\})", path)
    return "".join(
        (".+" if part.endswith(":path}") else "[^/]+") if part.startswith("{") else re.escape(part)
        for part in parts
    )
