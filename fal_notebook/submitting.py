"""Calls through the queue: what a submit carries beside the arguments, and `map` over many."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, SupportsIndex, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fal_notebook import calls, sync
from fal_notebook.client import Client
from fal_notebook.exceptions import GatewayError, OptionError
from fal_notebook.option_errors import refusals, unknown_option
from fal_notebook.option_types import Flag, Whole, option
from fal_notebook.patience import again
from fal_notebook.submitted import Submitted

T = TypeVar("T")

IN_FLIGHT = 32
YEAR = 365 * 24 * 3600
# A closed `map` waits so long until what it leaves is cancelled (seconds).
CANCEL_TIMEOUT = 5.0


class QueueOptions(BaseModel):
    """What a request asks of the queue; the names are those of fal's clients.

    Parameters
    ----------
    priority : str
        ``normal``, or ``low``: runs only when no normal one waits.
    start_timeout : float, optional
        Seconds, above 1, within which it must have begun.
    webhook_url : str, optional
        Where the result is sent.
    max_queue_length : int, optional
        It is refused when so many wait already.
    no_retry : bool
        It is not tried again when its runner fails.

    Raises
    ------
    OptionError
        When one is unknown or not allowed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    priority: Literal["normal", "low"] = option("normal", "its place in line", "normal or low")
    start_timeout: Annotated[float, Field(strict=True, gt=1, le=YEAR)] | None = option(
        None, "when it must have begun", "seconds above 1, at most a year"
    )
    webhook_url: str | None = option(None, "where the result is sent", "a URL, as text")
    max_queue_length: Whole | None = option(
        None, "refused when so many wait", "a whole number, 0 or more"
    )
    no_retry: Flag = option(False, "not tried again", "True or False")

    def __init__(self, **values: Any) -> None:
        known = type(self).model_fields
        unknown = [unknown_option(name, known) for name in values if name not in known]
        if unknown:
            raise OptionError("; ".join(unknown))
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise OptionError("; ".join(refusals(error, type(self), values))) from None

    def headers(self) -> dict[str, str]:
        """Return the headers that say so."""
        said: dict[str, str] = {"x-fal-queue-priority": self.priority}
        if self.start_timeout is not None:
            said["x-fal-request-timeout"] = str(self.start_timeout)
        if self.no_retry:
            said["x-fal-no-retry"] = "1"
        return said

    def query(self) -> dict[str, str]:
        """Return the parameters that say so."""
        said = {"fal_webhook": self.webhook_url, "fal_max_queue_length": self.max_queue_length}
        return {name: str(value) for name, value in said.items() if value is not None}


@dataclass(frozen=True)
class Submitter:
    """Calls an app through the queue, which ``handle.with_options(…)`` gives.

    Parameters
    ----------
    client : callable
        Gives the client of this process.
    ready : callable
        Waits until the app is deployed.
    path : str
        Of the app; "" is the app itself.
    """

    client: Callable[[], Client]
    ready: Callable[[], Awaitable[None]]
    owner: str
    name: str
    options: QueueOptions = field(default_factory=QueueOptions)
    path: str = ""

    def dump(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> calls.Sent:
        """Return arguments as they travel."""
        return calls.Sent(calls.dump(self.name, args, kwargs))

    def submit(self, /, *args: Any, **kwargs: Any) -> Submitted:
        """Put a call into the queue; it is on disk when this returns."""
        __tracebackhide__ = True
        return sync.wait(self._submit(self.dump(args, kwargs)))

    async def asubmit(self, /, *args: Any, **kwargs: Any) -> Submitted:
        """Put a call into the queue without blocking."""
        return await sync.there(self._submit(self.dump(args, kwargs)))

    def map(
        self, *iterables: Any, max_in_flight: int = IN_FLIGHT, return_exceptions: bool = False
    ) -> Iterator[Any]:
        """Yield the results of calls with the items of one or more iterables, in their order."""
        window = self._window(iterables, max_in_flight, return_exceptions)
        return _results(window, zip(*iterables))  # noqa: B905  the shortest ends it, as in map

    def amap(
        self, *iterables: Any, max_in_flight: int = IN_FLIGHT, return_exceptions: bool = False
    ) -> AsyncIterator[Any]:
        """Yield as `map` does, without blocking; the iterables may be async."""
        window = self._window(iterables, max_in_flight, return_exceptions)
        return _aresults(window, _rows(iterables))

    def _window(self, iterables: tuple[Any, ...], most: int, keep: bool) -> Window:
        if not iterables:
            raise TypeError("map needs at least one iterable")
        if not isinstance(most, SupportsIndex) or most.__index__() < 1:
            raise OptionError(f"max_in_flight={most!r} is not allowed: a whole number, 1 or more")
        return Window(self, most, keep)

    # --- on the background loop --------------------------------------------------------------
    async def call(self, sent: calls.Sent) -> Any:
        """Submit a call and wait for its outcome; cancelled, it takes its request along."""
        submitted = await self._submit(sent)
        try:
            return await submitted.outcome()
        except asyncio.CancelledError:
            await _withdraw(submitted)
            raise

    async def _submit(self, sent: calls.Sent) -> Submitted:
        """Submit a call; nobody would know of the request of one that is interrupted."""
        await self.ready()
        asked = asyncio.ensure_future(self._accepted(sent))
        try:
            return await asyncio.shield(asked)
        except asyncio.CancelledError:
            with suppress(GatewayError):
                await _withdraw(await asked)
            raise

    async def _accepted(self, sent: calls.Sent) -> Submitted:
        """Submit as often as it takes, under one id, so that it is accepted once."""
        headers = {
            "content-type": sent.content_type,
            "x-fal-submit-id": f"{time.time_ns() // 1000:016x}{os.urandom(8).hex()}",
            **self.options.headers(),
        }
        query = {**sent.query, **self.options.query()}
        app = self.owner, self.name, sent.content
        told = await again(lambda: self.client().submit(*app, headers, query, self.path))
        return Submitted(self.client, self.owner, self.name, told["request_id"])


async def _withdraw(submitted: Submitted) -> None:
    with suppress(GatewayError):
        await submitted.withdraw()


class Window:
    """The calls of a `map` that are under way, in order; its methods run on the background loop."""

    def __init__(self, submitter: Submitter, most: int, keep: bool) -> None:
        self._submitter = submitter
        self._most = most
        self._keep = keep
        self._tasks: deque[asyncio.Task[Any]] = deque()

    def __bool__(self) -> bool:
        return bool(self._tasks)

    def dump(self, row: tuple[Any, ...]) -> calls.Sent:
        """Return one row of arguments as it travels."""
        return self._submitter.dump(row, {})

    @property
    def full(self) -> bool:
        """Whether a result is to be taken before the next call."""
        return len(self._tasks) >= self._most

    async def add(self, sent: calls.Sent) -> None:
        """Begin a call."""
        self._tasks.append(asyncio.ensure_future(self._submitter.call(sent)))

    async def take(self) -> Any:
        """Return the first outcome; an exception too, if they are kept."""
        try:
            value = await self._tasks[0]
        except Exception as error:
            if not self._keep:
                raise
            value = error
        self._tasks.popleft()
        return value

    async def close(self) -> None:
        """Cancel what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _results(window: Window, rows: Iterator[tuple[Any, ...]]) -> Iterator[Any]:
    __tracebackhide__ = True
    end: Exception | None = None
    try:
        while end is None or window:
            if end is not None or window.full:
                yield _shown(sync.wait(window.take()))
                continue
            try:
                sent = window.dump(next(rows))
            except Exception as error:  # raised at its place: the results before it come first
                end = error
            else:
                sync.wait(window.add(sent))
        if not isinstance(end, StopIteration):
            raise end
    finally:
        closing = sync.submit(window.close())
        if threading.current_thread().name != sync.THREAD:  # there, it may only be collected
            with suppress(FutureTimeoutError):
                closing.result(CANCEL_TIMEOUT)


async def _aresults(window: Window, rows: AsyncIterator[tuple[Any, ...]]) -> AsyncIterator[Any]:
    end: Exception | None = None
    try:
        while end is None or window:
            if end is not None or window.full:
                yield _ashown(await sync.there(window.take()))
                continue
            try:
                sent = window.dump(await anext(rows))
            except Exception as error:  # as in `_results`
                end = error
            else:
                await sync.there(window.add(sent))
        if not isinstance(end, StopAsyncIteration):
            raise end
    finally:
        closing = asyncio.wrap_future(sync.submit(window.close()))
        await asyncio.wait((closing,), timeout=CANCEL_TIMEOUT)


async def _rows(iterables: tuple[Any, ...]) -> AsyncIterator[tuple[Any, ...]]:
    """Yield the items side by side until the shortest iterable ends."""
    sources = [_items(iterable) for iterable in iterables]
    while True:
        row = []
        for source in sources:
            try:
                row.append(await source.__anext__())
            except StopAsyncIteration:
                return
        yield tuple(row)


async def _items(iterable: Any) -> AsyncIterator[Any]:
    if isinstance(iterable, AsyncIterable):
        async for item in iterable:
            yield item
    else:
        for item in iterable:
            yield item


def _shown(value: Any) -> Any:
    return sync.iterate(value.values) if isinstance(value, calls.Stream) else value


def _ashown(value: Any) -> Any:
    return sync.aiterate(value.values) if isinstance(value, calls.Stream) else value
