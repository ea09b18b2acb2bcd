"""`retry`: call again what failed, after a growing wait."""

from __future__ import annotations

import asyncio
import functools
import inspect
import random
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeVar

F = TypeVar("F", bound=Callable[..., Any])
BackoffType = Literal["exponential", "fixed"]


def retry(
    max_retries: int = 3,
    base_delay: float = 1.0,
    max_delay: float = 60.0,
    backoff_type: BackoffType = "exponential",
    jitter: bool = False,
    should_retry: Callable[[Exception], bool] | None = None,
) -> Callable[[F], F]:
    """Have a function, sync or async, called at most `max_retries` times in all, as in fal.

    Delays are in seconds; each is twice the one before, or with ``fixed`` the same.
    """

    def delays() -> Iterator[float]:
        for number in range(max_retries - 1):
            factor = 2.0**number if backoff_type == "exponential" else 1.0
            delay = min(base_delay * factor, max_delay)
            yield delay * random.uniform(0.5, 1.5) if jitter else delay

    def next_delay(waits: Iterator[float], error: Exception) -> float:
        delay = next(waits, None)
        if delay is None or (should_retry is not None and not should_retry(error)):
            raise error
        return delay

    def decorate(function: F) -> F:
        async def again_async(*args: Any, **kwargs: Any) -> Any:
            waits = delays()
            while True:
                try:
                    return await function(*args, **kwargs)
                except Exception as error:
                    await asyncio.sleep(next_delay(waits, error))

        def again(*args: Any, **kwargs: Any) -> Any:
            waits = delays()
            while True:
                try:
                    return function(*args, **kwargs)
                except Exception as error:
                    time.sleep(next_delay(waits, error))

        chosen: Any = again_async if inspect.iscoroutinefunction(function) else again
        return functools.wraps(function)(chosen)  # type: ignore[return-value]

    return decorate
