"""What would end more than the call that raised it, or arrive changed, in an ordinary error."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from concurrent import futures
from typing import Any, TypeVar

T = TypeVar("T")

_CONVERTED = (futures.TimeoutError, futures.CancelledError, futures.InvalidStateError)


class EscapedError(Exception):
    """A call raised what is no ordinary error: that is its cause, and is what is told of it."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(f"the function raised {type(error).__name__}")


def contained(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call; whatever is raised is an ordinary error.

    Raises
    ------
    EscapedError
        Instead of what would end more than this call.
    """
    try:
        return function(*args, **kwargs)
    except BaseException as error:
        if not _escapes(error):
            raise
        raise EscapedError(error) from error


async def awaited(awaitable: Awaitable[T]) -> T:
    """Await as `contained` calls; the cancel of this task is let through.

    Raises
    ------
    EscapedError
        Instead of what would end more than this call.
    """
    try:
        return await awaitable
    except BaseException as error:
        if not _escapes(error) or _is_cancel(error):
            raise
        raise EscapedError(error) from error


def original(error: BaseException) -> BaseException:
    """Return the error that the user's code raised."""
    return error.__cause__ or error if isinstance(error, EscapedError) else error


def _escapes(error: BaseException) -> bool:
    # Futures and coroutines take a StopIteration for an end of their own, and asyncio makes bare
    # errors of its own of those of concurrent.futures, of a TimeoutError too.
    return not isinstance(error, Exception) or isinstance(error, (StopIteration, *_CONVERTED))


def _is_cancel(error: BaseException) -> bool:
    """Say whether the present task is cancelled; Python 3.10 takes what the user raised for it."""
    if not isinstance(error, asyncio.CancelledError):
        return False
    task = asyncio.current_task()
    return sys.version_info < (3, 11) or task is None or task.cancelling() > 0
