"""A place in the lines of an app's runners, as text that outlives gateway and log rotation."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

from fal_notebook.exceptions import OptionError
from fal_notebook.gateway.store import RunnerRow

# A runner that was seen to end longer ago than this (seconds) has no line that nobody looked at.
FRESH = 60.0

_PART = re.compile(r"~([0-9A-Za-z_-]+)(?:\.(\d+))?")
_TEXT = re.compile(rf"(\d+\.\d+(?:e\d+)?)((?:{_PART.pattern})*)")


class Cursor:
    """Where the next line of each runner starts.

    A runner that it does not name is new, and read from its beginning, unless it ended before
    `since`: then all of it has been read.

    Attributes
    ----------
    since : float
        Unix seconds.
    offsets : dict
        Per runner that is being read.
    """

    def __init__(self, since: float = 0.0) -> None:
        self.since = since
        self.offsets: dict[str, int] = {}
        self._done: set[str] = set()

    @classmethod
    def load(cls, text: str) -> Cursor:
        """Read the text of a cursor; "" is the oldest line that is kept.

        Raises
        ------
        OptionError
            When it is none.
        """
        cursor = cls()
        found = _TEXT.fullmatch(text or "0.0")
        if found is None:
            raise OptionError("this cursor was not given by a gateway; leave it empty to begin")
        cursor.since = float(found[1])
        for name, offset in _PART.findall(found[2]):
            if offset:
                cursor.offsets[name] = int(offset)
            else:
                cursor._done.add(name)
        return cursor

    def dump(self) -> str:
        """Return it as text of letters, digits and ``~.-_``."""
        open_ones = (f"~{name}.{offset}" for name, offset in self.offsets.items())
        return "".join((repr(self.since), *open_ones, *(f"~{name}" for name in self._done)))

    def is_done(self, row: RunnerRow) -> bool:
        """Say whether every line of a runner has been read."""
        if row.id in self.offsets:
            return False
        return row.id in self._done or (row.ended_at is not None and row.ended_at < self.since)

    def finish(self, row: RunnerRow) -> None:
        """Note that a runner has ended and all of it was read."""
        self.offsets.pop(row.id, None)
        self._done.add(row.id)

    def tidy(self, rows: Sequence[RunnerRow]) -> None:
        """Forget what `since` says as well; `rows` are all runners that did not end before it."""
        unread = (row.ended_at for row in rows if row.ended_at and not self.is_done(row))
        self.since = max(self.since, min((time.time() - FRESH, *unread)))
        left = {row.id for row in rows if row.ended_at is None or row.ended_at >= self.since}
        self._done &= left
        self.offsets = {name: offset for name, offset in self.offsets.items() if name in left}
