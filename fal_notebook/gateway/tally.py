"""Counts requests of every app by endpoint and by caller; written every few seconds."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from operator import attrgetter

from fal_notebook.exceptions import StoreError
from fal_notebook.gateway.endpoint_names import EndpointNames
from fal_notebook.gateway.fleet import Fleet
from fal_notebook.gateway.history import TIERS, Counts, Tier
from fal_notebook.gateway.store import Caller, HistoryRow, Store

# However many requests there are, the store is written so many seconds apart; the finest step of
# the history is a multiple of it, so that what is written together is of one step.
PERIOD = 5.0
# Counts from so far in the future (seconds) were made while the machine's clock was wrong.
AHEAD = 24 * 3600.0

_LOG = logging.getLogger(__name__)


@dataclass(slots=True)
class Counted:
    """What was counted of an app: endpoints and callers, both by name."""

    endpoints: dict[str, Counts] = field(default_factory=dict)
    callers: dict[str, Caller] = field(default_factory=dict)


class Tally:
    """What was counted since the last write, of all apps.

    Parameters
    ----------
    clock : callable
        Gives the time (unix seconds): that of the wall, by which people ask.
    """

    def __init__(self, store: Store, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        self._pending: dict[Fleet, Counted] = {}
        self._at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def of(self, fleet: Fleet) -> Callable[[bytes, int, float, str], None]:
        """Return what counts an answer of an app: ``count(path, status, seconds, user)``."""
        names = EndpointNames(functools.partial(self._known, fleet))

        def count(path: bytes, status: int, seconds: float, user: str) -> None:
            if fleet.revision is None:  # the app was deleted
                return
            name = names.of(path, status, fleet.revision.openapi)
            counted = self._of(fleet)
            if name not in counted.endpoints:
                counted.endpoints[name] = Counts()
            counted.endpoints[name].count(status, seconds)
            self._called(fleet, counted.callers, user)

        return count

    def write(self) -> None:
        """Write what was counted; when that fails it is written later, with what comes then."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._pending:
            return
        try:
            with self._store.transaction():
                for tier in TIERS:
                    self._store.add_history(self._rows(tier))
                for _, counted in self._there():
                    for caller in counted.callers.values():
                        self._store.add_caller(caller)
        except StoreError as error:
            _LOG.warning("counts of requests are written later: %s", error)
            self._arm()
            return
        self._pending.clear()

    def unwritten(self, owner: str, app: str, tier: Tier) -> Iterator[tuple[int, str, Counts]]:
        """Yield of an app what is not in the store: begin of the step, endpoint, counts."""
        for *of, _, at, endpoint, values in self._rows(tier):
            if of == [owner, app]:
                yield at, endpoint, Counts(values)

    def callers(self, fleet: Fleet) -> list[Caller]:
        """Return who has called an app, also what is not in the store; the last to call first."""
        where = "owner = ? AND app = ?"
        found = {c.user: c for c in self._store.select(Caller, where, fleet.owner, fleet.name)}
        for user, new in self._pending.get(fleet, Counted()).callers.items():
            old = found.get(user, replace(new, requests=0))
            requests, first_at = old.requests + new.requests, min(old.first_at, new.first_at)
            found[user] = replace(new, requests=requests, first_at=first_at)
        return sorted(found.values(), key=attrgetter("last_at"), reverse=True)

    def prune(self, *times: float) -> None:
        """Remove what each tier has kept for long enough at all of these times (unix seconds).

        They are that of the wall and that of `clock`: a machine's clock that is set wrongly for a
        while takes nothing away.
        """
        with self._store.transaction():
            for tier in TIERS:
                before = min(times) - tier.kept - 2 * tier.step
                self._store.forget_history(tier.step, before, max(times) + AHEAD)

    def close(self) -> None:
        """Write what was not written yet, and count no more."""
        self.write()
        if self._timer is not None:
            self._timer.cancel()

    def _of(self, fleet: Fleet) -> Counted:
        if self._timer is None:
            self._arm()
        if fleet not in self._pending:
            self._pending[fleet] = Counted()
        return self._pending[fleet]

    def _called(self, fleet: Fleet, callers: dict[str, Caller], user: str) -> None:
        now = self._clock()
        if user not in callers:
            callers[user] = Caller(fleet.owner, fleet.name, user, 0, now, now)
        callers[user].requests += 1
        callers[user].last_at = now

    def _arm(self) -> None:
        self._at = self._clock()
        delay = PERIOD - self._at % PERIOD
        self._timer = asyncio.get_running_loop().call_later(delay, self.write)

    def _rows(self, tier: Tier) -> Iterator[HistoryRow]:
        at = tier.begin(self._at)
        for fleet, counted in self._there():
            for endpoint, counts in counted.endpoints.items():
                yield fleet.owner, fleet.name, tier.step, at, endpoint, counts.values

    def _there(self) -> list[tuple[Fleet, Counted]]:
        """Return what was counted of apps that were not deleted since."""
        return [(fleet, of) for fleet, of in self._pending.items() if fleet.revision is not None]

    def _known(self, fleet: Fleet) -> Collection[str]:
        """Return what endpoints were counted under; the coarsest tier has all of them."""
        try:
            return self._store.counted_endpoints(fleet.owner, fleet.name, TIERS[-1].step)
        except StoreError:
            return ()
