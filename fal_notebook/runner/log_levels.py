"""Records of `logging` and warnings keep their level on their way through sys.stdout and stderr.

How they are formatted, and which are shown at all, stays as the user's code or Python set it.
"""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")

# The level of what is being written, where that is known better than by its stream.
_level: ContextVar[str | None] = ContextVar("fal_log_level", default=None)


def level_of(stream: str) -> str:
    """Return the level of a line that is written now to a stream whose own level is `stream`."""
    return _level.get() or stream


def named(number: int) -> str:
    """Return the standard level for a number of `logging`; numbers between count as the lower."""
    return LEVELS[min(max(number // 10, 1), len(LEVELS)) - 1]


def install() -> None:
    """Have every handler and every warning write under its level."""
    handler: Any = logging.Handler
    handler.handle = _with_level(handler.handle)
    module: Any = warnings
    module.showwarning = _as_warning(module.showwarning)


def _with_level(handle: Callable[[Any, logging.LogRecord], Any]) -> Callable[..., Any]:
    @functools.wraps(handle)
    def handle_with_level(handler: Any, record: logging.LogRecord) -> Any:
        with _writing(named(record.levelno)):
            return handle(handler, record)

    return handle_with_level


def _as_warning(show: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(show)
    def show_as_warning(*args: Any, **kwargs: Any) -> None:
        with _writing("WARNING"):
            show(*args, **kwargs)

    return show_as_warning


@contextmanager
def _writing(level: str) -> Iterator[None]:
    token = _level.set(level)
    try:
        yield
    finally:
        _level.reset(token)
