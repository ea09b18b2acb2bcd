"""Delivers what is due, few at a time and fewer for one host, and tries again what failed."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from fal_notebook.exceptions import FalNotebookError, StoreError, WebhookDeliveryError
from fal_notebook.gateway.webhooks.signing import Signer
from fal_notebook.gateway.webhooks.table import Delivery, DeliveryTable
from fal_notebook.gateway.webhooks.targets import parse

if TYPE_CHECKING:
    from fal_notebook.gateway.webhooks.client import Client

log = logging.getLogger(__name__)

RETRIES = 10
WINDOW = 2 * 3600.0
# Deliveries on their way at once: in all, to one host, and to all hosts that failed last time.
AT_MOST = 16
PER_HOST = 2
TO_FAILING = AT_MOST // 2
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


class Sender:
    """Makes one attempt: reads the body, signs it, posts it.

    Parameters
    ----------
    allow : str
        The setting ``webhook_allow`` (see `targets.check`).
    read : callable
        Returns the body (see `message.body`) for a request id, None when its result is gone.
    """

    def __init__(
        self, allow: str, signer: Signer, read: Callable[[str], Awaitable[bytes | None]]
    ) -> None:
        self._allow = allow
        self._signer = signer
        self._read = read

    async def __call__(self, delivery: Delivery) -> None:
        """Return when the target took it.

        Raises
        ------
        FalNotebookError
            When it did not; the sentence says why.
        """
        body = await self._read(delivery.request_id)
        if body is None:
            return
        signed = self._signer.headers(delivery.request_id, delivery.user_id, body, time.time())
        headers = {"Content-Type": "application/json", "User-Agent": "fal-notebook", **signed}
        status = await self._client.post(delivery.url, headers, body)
        if not 200 <= status < 300:
            raise WebhookDeliveryError(f"{parse(delivery.url).origin} answered {status}")

    @functools.cached_property
    def _client(self) -> Client:
        # Imported when the first webhook comes: a gateway without one does not pay for it.
        from fal_notebook.gateway.webhooks.client import Client

        return Client(self._allow)


class Deliverer:
    """The loop over due deliveries.

    What is on its way when the gateway ends is sent again by the next one: a receiver may see a
    webhook twice, never not at all.
    """

    def __init__(
        self,
        table: DeliveryTable,
        send: Callable[[Delivery], Awaitable[None]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._table = table
        self._send = send
        self._clock = clock
        self._wake = asyncio.Event()
        self._flying: dict[str, str] = {}  # request id to host
        self._failing: set[str] = set()  # hosts whose last attempt failed
        self._tasks: set[asyncio.Task[None]] = set()

    def notify(self) -> None:
        """Look at the table now: something was added."""
        self._wake.set()

    async def run(self) -> None:
        """Deliver until cancelled."""
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
        while len(self._flying) < AT_MOST:
            delivery = self._table.due(now, self._full(), self._flying)
            if delivery is None:
                return
            self._flying[delivery.request_id] = delivery.host
            task = asyncio.create_task(self._deliver(delivery))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _full(self) -> set[str]:
        """Return the hosts that get no more for now; hosts that fail leave room for the others."""
        flying = Counter(self._flying.values())
        full = {host for host, count in flying.items() if count >= PER_HOST}
        to_failing = sum(flying[host] for host in self._failing)
        return full | self._failing if to_failing >= TO_FAILING else full

    async def _deliver(self, delivery: Delivery) -> None:
        try:
            await self._record(delivery, await self._attempt(delivery))
        except StoreError as error:  # it will be sent again, but not at once and for ever
            log.warning("a webhook's delivery could not be recorded: %s", error)
            await asyncio.sleep(PAUSE)
        finally:
            del self._flying[delivery.request_id]
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
        attempt = delivery.attempt + 1
        at = next_attempt(attempt, self._clock()) if error else None
        (self._failing.add if at else self._failing.discard)(delivery.host)
        if at is not None:
            await self._table.reschedule(delivery.request_id, attempt, at, error)
            return
        await self._table.done(delivery.request_id)
        if error:
            log.warning("the webhook of request %s is given up: %s", delivery.request_id, error)
