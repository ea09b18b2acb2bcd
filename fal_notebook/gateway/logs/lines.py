"""One line of a log as data, and which lines are wanted."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from fal_notebook.exceptions import OptionError
from fal_notebook.runner.log_levels import LEVELS

Line = dict[str, Any]


def parse(raw: bytes, mark: bytes, runner: str = "") -> Line:
    """Return one line of a log file as data; `mark` begins the records of its runner.

    What only looks like a record is text.
    """
    text = raw.removeprefix(mark).decode(errors="replace")
    plain = {"at": None, "level": "INFO", "runner": runner, "request": None, "message": text}
    if not raw.startswith(mark):
        return plain
    try:
        record = json.loads(text)
        return {
            "at": float(record["at"]),
            "level": str(record["level"]),
            "runner": runner,
            "request": record["request"],
            # Half of a pair of surrogates, as in names of files that are no UTF-8, is no text.
            "message": str(record["message"]).encode(errors="backslashreplace").decode(),
        }
    except (ValueError, TypeError, KeyError):
        return plain


@dataclass(frozen=True)
class Wanted:
    """A filter: of one runner, of one request, of at least one level; "" is any.

    `part` is what the request's id begins or ends with.
    """

    runner: str = ""
    request: str = ""
    level: str = ""
    part: str = ""

    @classmethod
    def of(cls, runner: str = "", request: str = "", level: str = "") -> Wanted:
        """Return a filter as a caller names it.

        Raises
        ------
        OptionError
            When there is no such level.
        """
        if level and level.upper() not in LEVELS:
            known = ", ".join(LEVELS).lower()
            raise OptionError(f"level={level} is none of {known}; name one of them")
        return cls(runner, request, level.upper())

    def may_match(self, raw: bytes) -> bool:
        """Say at little cost whether a line of the file is worth parsing."""
        if self.part and self.part.encode() not in raw:
            return False
        return not self.request or self._request_bytes() in raw

    @property
    def narrow(self) -> bool:
        """Whether some lines of a runner are not wanted."""
        return bool(self.request or self.level or self.part)

    def matches(self, line: Line) -> bool:
        """Say whether a line of the right runner is wanted."""
        if self.request and line["request"] != self.request:
            return False
        if self.part and not has_part(line["request"] or "", self.part):
            return False
        return not self.level or _rank(line["level"]) >= _rank(self.level)

    def _request_bytes(self) -> bytes:
        return json.dumps(self.request).encode()


def has_part(request: str, part: str) -> bool:
    """Say whether a request's id begins or ends with `part`."""
    return request.startswith(part) or request.endswith(part)


def _rank(level: str) -> int:
    return LEVELS.index(level) if level in LEVELS else LEVELS.index("INFO")
