"""The loop around the autoscaler: observe a fleet, decide, start and stop runners; nothing else."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable

from fal_notebook.gateway import autoscaler, clock
from fal_notebook.gateway.fleet import Fleet, Runner, SchedulingError, start_failure


class Controller:
    """Runs `autoscaler.decide` for a fleet whenever something happened to it or a time has come.

    Parameters
    ----------
    start, stop : callable
        Start a runner of the fleet; stop one gracefully.
    """

    def __init__(
        self, start: Callable[[Fleet], Runner], stop: Callable[[Runner, str], None]
    ) -> None:
        self._start = start
        self._stop = stop
        # When each fleet's next decision is due (unix seconds, 0 for at once), and its handle.
        self._due: dict[Fleet, tuple[float, asyncio.Handle]] = {}
        self._closed = False

    def poke(self, fleet: Fleet) -> None:
        """Decide for this fleet in the next turn of the loop; many pokes are one decision."""
        self._schedule(fleet, 0.0)

    def nudge(self, fleet: Fleet) -> None:
        """Decide when the request that has just ended may ask for it, not at each one's end.

        That is after its keep_alive; a decision that is due before does as well, because it looks
        further itself. So a busy app costs no decision per request.
        """
        asked = clock.now() + fleet.scaling.keep_alive
        if fleet not in self._due:
            self._schedule(fleet, 0.0)
        elif self._due[fleet][0] > asked:
            self._schedule(fleet, asked)

    def forget(self, fleet: Fleet) -> None:
        """Never decide for this fleet again, also when its last runners and requests end."""
        fleet.retire()
        self._cancel(fleet)

    def _cancel(self, fleet: Fleet) -> None:
        if fleet in self._due:
            self._due.pop(fleet)[1].cancel()

    def close(self) -> None:
        """Decide no more."""
        self._closed = True
        for fleet in list(self._due):
            self._cancel(fleet)

    def _schedule(self, fleet: Fleet, at: float) -> None:
        if self._closed or fleet.revision is None:
            return
        self._cancel(fleet)
        loop = asyncio.get_running_loop()
        delay = at - clock.now()
        later = functools.partial(loop.call_later, delay) if delay > 0 else loop.call_soon
        self._due[fleet] = at, later(self._reconcile, fleet)

    def _reconcile(self, fleet: Fleet) -> None:
        self._due.pop(fleet, None)
        if fleet.revision is None:
            return
        now = clock.now()
        decision = autoscaler.decide(fleet.scaling, fleet.observe(now), now)
        memory = autoscaler.memory(fleet.scaling)
        fleet.asked = autoscaler.asked(fleet.asked, decision.target, now, memory)
        if decision.blocked_until is not None and not fleet.active():
            fleet.refuse(_backing_off(fleet, decision.blocked_until - now))
        for _ in range(decision.start):
            self._start(fleet)
        for runner_id in decision.stop:
            self._stop(fleet.runners[runner_id], "scaled down")
        if decision.wake_at is not None and fleet not in self._due:
            self._schedule(fleet, decision.wake_at)


def _backing_off(fleet: Fleet, seconds: float) -> SchedulingError:
    return start_failure(
        f"the app's runners fail to start (CRASH_BACKOFF, next try in {seconds:.0f} s): "
        f"{fleet.last_error}",
    )
