"""Counts the requests of every app by endpoint, in memory, and writes them every few seconds."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable, Collection, Iterator

from fal_notebook.exceptions import StoreError
from fal_notebook.gateway.endpoint_names import EndpointNames
from fal_notebook.gateway.fleet import Fleet
from fal_notebook.gateway.history import TIERS, Counts, Tier
from fal_notebook.gateway.store import HistoryRow, Store

# However many requests there are, the store is written so many seconds apart; the finest step of
# the history is a multiple of it, so that what is written together is of one step.
PERIOD = 5.0
# Counts from so far in the future (seconds) were made while the machine's clock was wrong.
AHEAD = 24 * 3600.0

_LOG = logging.getLogger(__name__)


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
        self._pending: dict[Fleet, dict[str, Counts]] = {}
        self._at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def of(self, fleet: Fleet) -> Callable[[bytes, int, float], None]:
        """Return what counts an answer of an app: ``count(path, status, seconds)``."""
        names = EndpointNames(functools.partial(self._known, fleet))

        def count(path: bytes, status: int, seconds: float) -> None:
            if fleet.revision is None:  # the app was deleted
                return
            name = names.of(path, status, fleet.revision.openapi)
            counted = self._of(fleet)
            if name not in counted:
                counted[name] = Counts()
            counted[name].count(status, seconds)

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

    def _of(self, fleet: Fleet) -> dict[str, Counts]:
        if self._timer is None:
            self._arm()
        return self._pending.setdefault(fleet, {})

    def _arm(self) -> None:
        self._at = self._clock()
        delay = PERIOD - self._at % PERIOD
        self._timer = asyncio.get_running_loop().call_later(delay, self.write)

    def _rows(self, tier: Tier) -> Iterator[HistoryRow]:
        at = tier.begin(self._at)
        for fleet, counted in self._pending.items():
            if fleet.revision is not None:
                for endpoint, counts in counted.items():
                    yield fleet.owner, fleet.name, tier.step, at, endpoint, counts.values

    def _known(self, fleet: Fleet) -> Collection[str]:
        """Return what endpoints were counted under; the coarsest tier has all of them."""
        try:
            return self._store.counted_endpoints(fleet.owner, fleet.name, TIERS[-1].step)
        except StoreError:
            return ()
