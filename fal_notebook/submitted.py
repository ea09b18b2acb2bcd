"""One request in the queue, seen from the notebook: its status, logs and result, and its cancel.

It outlasts the kernel and the gateway: both may be restarted while it waits or runs.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from numbers import Real
from typing import Any, TypeVar

from fal_notebook import calls, sync
from fal_notebook.client import Client
from fal_notebook.exceptions import GatewayUnavailableError, NotFoundError, OptionError
from fal_notebook.log_lines import untold
from fal_notebook.patience import Patience, again

T = TypeVar("T")

COMPLETED = "COMPLETED"
# An iteration knows so many of the lines that it told: the gateway tells a new connection fewer.
REMEMBERED = 2000


@dataclass(frozen=True)
class RequestStatus:
    """How far a request is.

    Attributes
    ----------
    state : str
        ``IN_QUEUE``, ``IN_PROGRESS`` or ``COMPLETED``, whether it went well or not.
    queue_position : int or None
        How many stand before it while it is in the queue.
    metrics : dict
        Of a completed one: ``inference_time`` in seconds.
    error, error_type : str
        Why a completed one was not answered by the function; "" when it was.
    logs : tuple of dict
        In iteration, the lines that are new, as ``handle.logs()`` gives them; their runner is None.
    """

    state: str
    queue_position: int | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    error_type: str = ""
    logs: tuple[dict[str, Any], ...] = ()


class Submitted:
    """A request that the queue has accepted; ``handle.request(request_id)`` gives it again.

    Parameters
    ----------
    client : callable
        Gives the client of this process.
    owner, name : str
        The app.
    request_id : str
        The request.
    """

    def __init__(
        self, client: Callable[[], Client], owner: str, name: str, request_id: str
    ) -> None:
        self.request_id = request_id
        self._client = client
        self._name = name
        self._at = owner, name, request_id

    def status(self) -> RequestStatus:
        """Return how far the request is."""
        return sync.wait(self._status())

    def logs(self, tail: int = 10_000) -> list[dict[str, Any]]:
        """Return what it wrote, as ``handle.logs()`` does: the last `tail` lines that are kept."""
        return sync.wait(self._logs(tail))

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the request and return what a call returns, or raise what a call raises.

        Raises
        ------
        TimeoutError
            When it is not completed after `timeout` seconds; it goes on.
        RequestCancelledError
            When it was cancelled.
        StartTimeoutError
            When it did not begin in time.
        """
        __tracebackhide__ = True
        try:
            result = sync.wait(self.outcome(timeout))
        except KeyboardInterrupt as error:
            error.args = (f"{self._goes_on()}; its .cancel() ends it",)
            raise
        return sync.iterate(result.values) if isinstance(result, calls.Stream) else result

    async def aio(self, timeout: float | None = None) -> Any:
        """Wait as `result` does, without blocking: ``await submitted.aio()``."""
        __tracebackhide__ = True
        result = await sync.there(self.outcome(timeout))
        return sync.aiterate(result.values) if isinstance(result, calls.Stream) else result

    def cancel(self) -> bool:
        """Cancel the request; False when it is completed already.

        One that waits never runs. One at work finishes, and its result stands, unless the app has
        a route for its cancel that ends it.
        """
        return sync.wait(self.withdraw())

    def __iter__(self) -> Iterator[RequestStatus]:
        """Yield the status whenever it changes, with new log lines, until it is completed."""
        return sync.iterate(self._events(logs=True))

    def __aiter__(self) -> AsyncIterator[RequestStatus]:
        """Yield as in iteration, without blocking."""
        return sync.aiterate(self._events(logs=True))

    def __repr__(self) -> str:
        owner, name, request_id = self._at
        return f"<request {request_id} of {owner}/{name}>"

    # --- on the background loop --------------------------------------------------------------
    async def outcome(self, timeout: float | None = None) -> Any:
        """Return the value, or a `calls.Stream` of a generator's values."""
        _check_timeout(timeout)
        try:
            await asyncio.wait_for(self._completed(), timeout)
        except asyncio.TimeoutError:
            state = (await self._status()).state
            if state != COMPLETED:
                raise TimeoutError(
                    f"{self._goes_on()}, it is {state} after {timeout:g} s"
                ) from None
        content_type, content = await self._ask(lambda: self._client().result(*self._at))
        return await calls.answer(self._name, content_type, content)

    async def withdraw(self) -> bool:
        """Cancel the request; a second time does no harm."""
        return await self._ask(lambda: self._client().cancel_request(*self._at))

    async def _status(self) -> RequestStatus:
        return _status(await self._ask(lambda: self._client().request_status(*self._at)))

    async def _logs(self, tail: int) -> list[dict[str, Any]]:
        owner, name, request_id = self._at
        ask = self._client().logs
        lines = await self._ask(lambda: ask(owner, name, request=request_id, tail=tail))
        if not lines:
            await self._status()  # says so when there is no such request
        return lines

    async def _completed(self) -> None:
        async for _ in self._events(logs=False):
            pass

    async def _events(self, logs: bool) -> AsyncGenerator[RequestStatus, None]:
        """Yield statuses until the last one; a stream that ends before is asked for again.

        It is read to its end, so that its connection serves the next request.
        """
        patience, told = Patience(), _Told(self.request_id)
        while not told.all:
            first = True
            try:
                async for answer in self._client().request_events(*self._at, logs=logs):
                    patience.found()
                    status = told.next(answer, first)
                    first = False
                    if status is not None:
                        yield status
                if not told.all:
                    raise GatewayUnavailableError("the gateway ended while it told of a request")
            except GatewayUnavailableError as error:
                if not told.all:
                    await patience.lost(error)
            except NotFoundError as error:
                raise self._unknown(error) from None

    async def _ask(self, ask: Callable[[], Awaitable[T]]) -> T:
        try:
            return await again(ask)
        except NotFoundError as error:
            raise self._unknown(error) from None

    def _unknown(self, error: NotFoundError) -> NotFoundError:
        owner, name, request_id = self._at
        return NotFoundError(f"{error}: {request_id} of {owner}/{name} is not there any more")

    def _goes_on(self) -> str:
        return f"the request {self.request_id} of {self._name} goes on"


def _check_timeout(timeout: Any) -> None:
    is_seconds = isinstance(timeout, Real) and float(timeout) >= 0  # no NaN is
    if timeout is not None and not is_seconds:
        raise OptionError(f"timeout={timeout!r} is not allowed: seconds from 0, or None")


class _Told:
    """What an iteration has told already: the last status and the log lines."""

    def __init__(self, request_id: str) -> None:
        self._request = request_id
        self.all = False
        self._last: RequestStatus | None = None
        self._lines: deque[dict[str, Any]] = deque(maxlen=REMEMBERED)

    def next(self, answer: dict[str, Any], first: bool) -> RequestStatus | None:
        """Return the status with its new lines, None when nothing is new.

        The `first` answer of a connection has all lines that are told, the others the new ones.
        """
        told = answer.get("logs") or []
        lines = untold(self._lines, told) if first else told
        self._lines.extend(lines)
        new = [_line(item, self._request) for item in lines]
        last, self._last = self._last, _status(answer)
        self.all = self._last.state == COMPLETED
        return _status(answer, new) if new or self._last != last else None


def _status(told: dict[str, Any], logs: list[dict[str, Any]] | None = None) -> RequestStatus:
    return RequestStatus(
        state=told["status"],
        queue_position=told.get("queue_position"),
        metrics=told.get("metrics") or {},
        error=told.get("error") or "",
        error_type=told.get("error_type") or "",
        logs=tuple(logs or ()),
    )


def _line(item: dict[str, Any], request_id: str) -> dict[str, Any]:
    """Return a line of fal's shape in that of all logs; which runner wrote it is not told."""
    return {
        "at": datetime.fromisoformat(item["timestamp"]).timestamp(),
        "level": item["level"],
        "runner": None,
        "request": request_id,
        "message": item["message"],
    }
