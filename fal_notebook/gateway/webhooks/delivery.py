"""Delivers what is due, some at a time and few to one target, and tries again what failed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from fal_notebook.exceptions import FalNotebookError, StoreError
from fal_notebook.gateway.clock import now
from fal_notebook.gateway.webhooks import flights
from fal_notebook.gateway.webhooks.table import Delivery, DeliveryTable
from fal_notebook.gateway.webhooks.targets import parse

log = logging.getLogger(__name__)

RETRIES = 10
WINDOW = 2 * 3600.0
# Seconds: after the state could not be written, and at most between two looks at the table, as
# timers stand still while a laptop sleeps.
PAUSE = 60.0


def next_attempt(attempt: int, at: float) -> float | None:
    """Return when to try again after attempt number `attempt` failed at `at` (unix seconds).

    Each distance is double the one before and counts from the failure, not from the first attempt:
    after a long sleep of the machine the retries left are not spent at once.
    """
    if attempt > RETRIES:
        return None
    return float(at + WINDOW / (2**RETRIES - 1) * 2 ** (attempt - 1))


class Deliverer:
    """The loop over due deliveries.

    What is on its way when the gateway ends is sent again by the next one: a receiver may see a
    webhook twice, never not at all.
    """

    def __init__(
        self,
        table: DeliveryTable,
        send: Callable[[Delivery], Awaitable[None]],
        clock: Callable[[], float] = now,
    ) -> None:
        self._table = table
        self._send = send
        self._clock = clock
        self._wake = asyncio.Event()
        self._flights = flights.Flights()
        self._tasks: set[asyncio.Task[None]] = set()

    def lane_of(self, url: str) -> str:
        """Return the target that a URL's webhook is added with."""
        return self._flights.lane_of(url)

    def notify(self) -> None:
        """Look at the table now: something was added."""
        self._wake.set()

    async def run(self) -> None:
        """Deliver until cancelled."""
        with contextlib.suppress(StoreError):
            await self._table.share()  # who took a webhook is not known any more
        try:
            while True:
                self._wake.clear()
                await self._sleep(self._turn())
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _turn(self) -> float | None:
        """Start what can be started; return the seconds to the next turn, None if none is due."""
        try:
            now = self._clock()
            self._start_due(now)
            next_at = self._table.next_at(now)
        except StoreError as error:
            log.warning("webhooks wait: %s", error)
            return PAUSE
        return None if next_at is None else min(next_at - now, PAUSE)

    async def _sleep(self, seconds: float | None) -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._wake.wait(), seconds)

    def _start_due(self, now: float) -> None:
        while self._start_round(now):
            pass

    def _start_round(self, now: float) -> bool:
        """Start at most one more for each target; say whether there was one to start."""
        flying = self._flights
        if flying.left <= 0:
            return False
        only = None if flying.left_to_unproven > 0 else flying.proven
        given = flying.full(), flying.targets, *flying.crowded()
        due = self._table.due(now, flying.left, *given, only)
        started = False
        for delivery in filter(flying.may_start, due):
            self._start(delivery)
            started = True
        return started

    def _start(self, delivery: Delivery) -> None:
        self._flights.start(delivery)
        task = asyncio.create_task(self._deliver(delivery))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _deliver(self, delivery: Delivery) -> None:
        slow = asyncio.get_running_loop().call_later(flights.FRESH, self._slow, delivery)
        try:
            await self._record(delivery, await self._attempt(delivery))
        except StoreError as error:  # it will be sent again, but not at once and for ever
            log.warning("a webhook's delivery could not be recorded: %s", error)
            await asyncio.sleep(PAUSE)
        finally:
            slow.cancel()
            self._flights.end(delivery)
            self._wake.set()

    def _slow(self, delivery: Delivery) -> None:
        self._flights.slow(delivery)
        self._wake.set()

    async def _attempt(self, delivery: Delivery) -> str:
        """Return why it failed, empty when it arrived."""
        try:
            await self._send(delivery)
        except FalNotebookError as error:
            return str(error)
        except Exception as error:
            log.exception("a mistake of ours in a webhook's delivery")
            return f"{type(error).__name__}: {error}"
        return ""

    async def _record(self, delivery: Delivery, error: str) -> None:
        request_id, attempt = delivery.request_id, delivery.attempt + 1
        at = next_attempt(attempt, self._clock()) if error else None
        given_up = self._flights.note(delivery, not error)
        if at is not None:
            await self._table.reschedule(request_id, attempt, at, error)
        if given_up:
            await self._table.share(given_up)
        if at is not None:
            return
        await self._table.done(request_id)
        if error:
            origin = parse(delivery.url).origin
            log.warning(
                "the webhook of request %s to %s is given up: %s", request_id, origin, error
            )
