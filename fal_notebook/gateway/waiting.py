"""Requests of one app that wait for a slot: callers who stand in line, and queued requests."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Any

from fal_notebook.gateway import clock
from fal_notebook.gateway.queue.backlog import Backlog


@dataclass(eq=False)
class Waiter:
    """A caller that waits; `granted` resolves to a runner whose slot is taken."""

    arrived: float
    granted: asyncio.Future[Any]
    hint: bytes | None = None


class Waiting:
    """Who gets the next slot: first come first served in each of both lines, which take turns.

    Queued requests of low priority come when nobody else waits.
    """

    def __init__(self) -> None:
        self.backlog = Backlog()
        self._callers: deque[Waiter] = deque()
        self._hints: dict[int, bytes] = {}  # of queued requests; most have none
        self._queue_held = False
        self._queue_turn = True

    def __bool__(self) -> bool:
        """Whether a slot could be given to somebody."""
        while self._callers and self._callers[0].granted.done():
            self._callers.popleft()  # it has gone
        return bool(self._callers or (self.backlog and not self._queue_held))

    def __len__(self) -> int:
        return len(self._callers) + len(self.backlog)

    def add_caller(self, hint: bytes | None = None) -> Waiter:
        """Let a caller stand in line."""
        waiter = Waiter(clock.now(), asyncio.get_running_loop().create_future(), hint)
        self._callers.append(waiter)
        return waiter

    def remove_caller(self, waiter: Waiter) -> bool:
        """Take a caller out of the line; say whether it was there."""
        found = waiter in self._callers
        if found:
            self._callers.remove(waiter)
        return found

    def add_queued(self, number: int, low: bool, hint: bytes | None) -> None:
        """Let a queued request stand in line."""
        self.backlog.add(number, low)
        if hint is not None:
            self._hints[number] = hint

    def remove_queued(self, number: int) -> bool:
        """Take a queued request out of the line; say whether it was there."""
        self._hints.pop(number, None)
        return self.backlog.remove(number)

    def hold_queue(self) -> None:
        """Give out no queued request any more; those who call directly are still served."""
        self._queue_held = True

    def pop(self) -> tuple[Waiter | int, bytes | None]:
        """Return who is next, a caller or the number of a queued request, and its hint.

        Somebody waits.
        """
        if self._queue_is_next():
            number = self.backlog.pop()
            return number, self._hints.pop(number, None)
        caller = self._callers.popleft()
        return caller, caller.hint

    def _queue_is_next(self) -> bool:
        """Take turns when both kinds wait, so that neither holds the other up for long."""
        if not self._callers:
            return True
        if self._queue_held or not self.backlog.has_normal:
            return False
        self._queue_turn = not self._queue_turn
        return self._queue_turn

    def refuse(self, error: Exception) -> None:
        """Fail every caller that waits; queued requests stay."""
        while self._callers:
            granted = self._callers.popleft().granted
            if not granted.done():
                granted.set_exception(error)
                granted.exception()  # retrieved: its request may have gone in this moment

    def due(self, now: float, delay: float) -> tuple[int, float | None]:
        """Return how many have waited for `delay` seconds, and when the next one will have."""
        if not len(self):
            return 0, None
        later = [w.arrived + delay for w in self._callers if w.arrived + delay > now]
        number = len(self._callers) - len(later) + self.backlog.arrived(now - delay)
        queued = self.backlog.first_after(now - delay)
        if queued is not None:
            later.append(queued + delay)
        return number, min(later, default=None)
