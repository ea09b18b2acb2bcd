"""What the classic builder tells, in pieces: its steps, and the lines that they print."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable

from fal_notebook.backends.details import Detail

# Of a failed build, as many of its last lines are told.
LAST_LINES = 20
# Of a line that has no end yet, so much is kept (characters).
LONGEST = 8192

# The builder's own words come each in a piece of its own.
_STEP = re.compile(r"Step (\d+)/(\d+) : .*")
_WORK = re.compile(
    r" ---> ([0-9a-f]{12}|Using cache|Running in [0-9a-f]+)|"
    r"( ---> Removed|Removing) intermediate container [0-9a-f]+"
)
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


class BuildOutput:
    """Takes what the builder tells, and tells it on: each step, and what that prints as details.

    Output that is just what the builder says of the next step is taken for that.

    Attributes
    ----------
    step : str
        The one that runs; empty when none has begun.
    last : deque of str
        The last lines that it printed.
    """

    def __init__(self, progress: Callable[[str], None]) -> None:
        self.step = ""
        self.last: deque[str] = deque(maxlen=LAST_LINES)
        self._progress = progress
        self._rest = ""  # a line without its end
        self._number, self._count = 0, ""

    def take(self, piece: str) -> None:
        """Take a piece: one of the builder's own words, or what a step printed at a time."""
        if self._is_next(_STEP.fullmatch(piece.rstrip())):
            self._begin(plain(piece).rstrip())
        elif _WORK.fullmatch(piece.rstrip()):
            self.flush()
        else:
            self._print(piece)

    def flush(self) -> None:
        """Take the line that has no end yet for a whole one."""
        if text := _seen(self._rest):
            self.last.append(text)
        self._rest = ""

    def _is_next(self, step: re.Match[str] | None) -> bool:
        """Say whether a step is the one to come, and count it; output may look like one."""
        if step is None or int(step[1]) != self._number + 1:
            return False
        if self._count not in ("", step[2]):
            return False
        self._number, self._count = int(step[1]), step[2]
        return True

    def _begin(self, step: str) -> None:
        self._rest, self.step = "", step
        self.last.clear()
        self._progress(step)

    def _print(self, piece: str) -> None:
        *lines, rest = (self._rest + piece).split("\n")
        for line in lines:
            self._rest = line
            self._tell()
            self.flush()
        self._rest = rest[-LONGEST:]
        self._tell()

    def _tell(self) -> None:
        if text := _seen(self._rest):
            self._progress(Detail(text))


def plain(text: str) -> str:
    """Return a text without its colours."""
    return _ANSI.sub("", text)


def _seen(line: str) -> str:
    """Return what a terminal shows of a line that may have been written over."""
    return plain(line).rstrip().rpartition("\r")[2]
