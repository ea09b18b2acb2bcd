"""Errors of requests on their way to the gateway: grouped by type and place.

They are told at once, for a runner may be ended for its answer; what fails while the link is busy
is told together.
"""

from __future__ import annotations

import functools
import inspect
import os
import re
import sysconfig
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, TypeVar

from fal_notebook.app_exceptions import said
from fal_notebook.runner import log_context
from fal_notebook.runner.secret_forms import Redact
from fal_notebook.runner.shown import cut
from fal_notebook.runner.tracebacks import OURS, chained

# So many groups wait for a gateway; of more, the oldest are lost.
KEPT = 100
LONGEST_NAME, LONGEST_MESSAGE, LONGEST_TRACEBACK = 200, 500, 16 * 1024

_LIBRARIES = tuple(
    {path + os.sep for path in (*sysconfig.get_paths().values(), str(Path(__file__).parents[1]))}
)
_PACKAGES = re.compile(r"[/\\](site|dist)-packages[/\\]")
_CELL = re.compile(r"<ipython-input-.*>|.*[/\\]ipykernel_\d+[/\\]\d+\.py")

# Under this name an error holds where it stands, if its traceback does not say so.
_PLACE = "_fal_place"

_Key = tuple[str, str]
E = TypeVar("E", bound=BaseException)


@dataclass
class _Group:
    """Failures that were not sent yet; all but count and first is the newest one's."""

    first: float
    count: int = 0
    last: float = 0.0
    request: str = ""
    message: str = ""
    traceback: str = ""
    given: Callable[[], str] = str

    def report(self, key: _Key) -> dict[str, Any]:
        """Return what the gateway is told."""
        parts = {name: value for name, value in vars(self).items() if name != "given"}
        return {"type": key[0], "place": key[1], **parts, "input": self.given()}


class Failures:
    """Collects failures on the runner's loop; the link takes reports.

    Parameters
    ----------
    on_due : callable
        Called when there is something to take.

    Attributes
    ----------
    redact : callable
        Takes the values of the app's secrets out of a message, before it is cut.
    """

    def __init__(self, on_due: Callable[[], None]) -> None:
        self.redact: Redact = str
        self._on_due = on_due
        self._groups: dict[_Key, _Group] = {}

    @property
    def waiting(self) -> bool:
        """Whether there are failures that no gateway has heard of yet."""
        return bool(self._groups)

    def add(self, error: BaseException, text: str, given: Callable[[], str]) -> None:
        """Count a failure; `text` is its traceback, `given` shows the request's input."""
        key = type_name(error), place_of(error)
        now = time.time()
        group = self._groups.get(key) or _placed(self._groups, key, _Group(now))
        group.count += 1
        group.last = now
        group.request = log_context.current() or ""
        group.message = cut(self.redact(said(error)), LONGEST_MESSAGE)
        group.traceback = cut(text, LONGEST_TRACEBACK, amid=True)
        group.given = given
        self._on_due()

    def take(self) -> list[dict[str, Any]]:
        """Return the reports that no gateway has heard yet, each with its newest sample."""
        groups, self._groups = self._groups, {}
        return [group.report(key) for key, group in groups.items()]


def _placed(groups: dict[_Key, Any], key: _Key, group: Any) -> Any:
    """Add a group, in the place of the oldest where there are too many."""
    if len(groups) >= KEPT:
        del groups[next(iter(groups))]
    groups[key] = group
    return group


def type_name(error: BaseException) -> str:
    """Return the name of an error's type, with its module if that says anything."""
    kind = type(error)
    known = kind.__module__ in ("builtins", "__main__")
    name = kind.__qualname__ if known else f"{kind.__module__}.{kind.__qualname__}"
    return cut(name, LONGEST_NAME)


def place_of(error: BaseException) -> str:
    """Return where the user's code failed: the innermost line that is no library's.

    An error that says nothing of that may have a cause which does. One that was raised by a
    library before any line of the user has the library's line, one of ours "the call". What was
    `placed` stands there.
    """
    if place := vars(error).get(_PLACE):
        return str(place)
    every: list[tuple[FrameType, int]] = []
    for shown in chained(error):
        found = [f for f in traceback.walk_tb(shown.__traceback__) if not _is(OURS, f[0])]
        users = [f for f in found if not _of_library(f[0].f_code.co_filename)]
        if users:
            return _described(users[-1][0].f_code, users[-1][1])
        every = every or found
    return _described(every[-1][0].f_code, every[-1][1]) if every else "the call"


def defined_at(function: Any) -> str:
    """Return the place at which a function is defined, "" of one that is not the user's."""
    while isinstance(function, functools.partial):
        function = function.func
    code = getattr(inspect.unwrap(function), "__code__", None)
    return "" if code is None else _described(code, code.co_firstlineno)


def placed(error: E, place: str) -> E:
    """Have an error stand at another place than its traceback says; "" changes nothing."""
    vars(error)[_PLACE] = place
    return error


def _is(folders: tuple[str, ...], frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(folders)


def _of_library(filename: str) -> bool:
    return filename.startswith(("<frozen ", *_LIBRARIES)) or bool(_PACKAGES.search(filename))


def _described(code: CodeType, line: int) -> str:
    """Name a line of code; cells have other file names in each kernel, so those are left out."""
    filename = code.co_filename
    if _CELL.fullmatch(filename):
        filename = "<cell>"
    elif not filename.startswith("<"):
        filename = "/".join(filename.split(os.sep)[-2:])
    return cut(f"{filename}:{line} in {code.co_name}", LONGEST_NAME)
