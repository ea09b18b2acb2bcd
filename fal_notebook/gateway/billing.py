"""Billed seconds by app, revision, machine type, day and state: collected here, written at times.

A gateway that is killed loses nothing of runners that live on: the next one bills them from the
last writing on. Of a runner that ended in between it is unknown when, so that is not billed.
"""

from __future__ import annotations

import asyncio
import logging
import time

from fal_notebook.exceptions import StoreError
from fal_notebook.gateway import clock
from fal_notebook.gateway.meter import Meter
from fal_notebook.gateway.store import Billed, Revision, RunnerRow, Store
from fal_notebook.gateway.transitions import OVER

# So often billed seconds are written while runners live, and so soon after one ended (seconds).
PERIOD = 10.0
SOON = 1.0
# The reading of the machine's own clock at the last writing; that clock cannot be set.
_WRITTEN = "billed_until"

_LOG = logging.getLogger(__name__)
# Owner, app, number of the revision, machine type.
_Account = tuple[str, str, int, str]


class Billing:
    """Hands each runner its meter and adds up what they say."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._meters: dict[Meter, _Account] = {}
        self._unwritten: dict[tuple[_Account, str, str], float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._soon = False  # it is due within a moment
        self._written = float(store.note(_WRITTEN, _reading))

    def meter(self, row: RunnerRow, revision: Revision) -> Meter:
        """Return the meter of a runner, to which its states are told."""
        meter = Meter(revision.machine["gpus"])
        account = row.owner, row.app, revision.number, row.machine_type
        self._meters[meter] = account
        if self._timer is None:
            self._write_in(PERIOD)
        return meter

    def adopt(self, meter: Meter, row: RunnerRow) -> None:
        """Count what no gateway saw of a runner that lives, in the state it was last known in."""
        unseen = unseen_seconds(time.monotonic(), self._written, time.time(), row.created_at)
        meter.add(row.state, unseen)

    def ended(self) -> None:
        """Write soon: a runner has ended, so no later gateway can ask how it is."""
        if self._timer is not None and not self._soon:
            self._timer.cancel()
            self._write_in(SOON)
            self._soon = True

    def rows(self, owner: str, app: str, first_day: str) -> list[Billed]:
        """Return what is billed of an owner, or of one app, since a day; also what is new."""
        where = "owner = ? AND ? IN ('', app) AND day >= ?"
        found = self._store.select(Billed, where, owner, app, first_day)
        self._collect()
        mine = (b for b in self._new() if b.owner == owner and app in ("", b.app))
        return [*found, *(billed for billed in mine if billed.day >= first_day)]

    def close(self) -> None:
        """Write what was not written yet."""
        if self._timer is not None:
            self._timer.cancel()
        self._collect()
        self._save()

    def _new(self) -> list[Billed]:
        unwritten = self._unwritten.items()
        return [Billed(*account, day, state, s) for (account, day, state), s in unwritten]

    def _collect(self) -> None:
        """Read every meter; those of runners that are over are not needed any more."""
        now, day = clock.now(), day_of(time.time())
        for meter, account in list(self._meters.items()):
            for state, seconds in meter.take(now).items():
                key = account, day, state
                self._unwritten[key] = self._unwritten.get(key, 0.0) + seconds
            if meter.state in OVER:
                del self._meters[meter]

    def _write_in(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._write)

    def _write(self) -> None:
        self._timer, self._soon = None, False
        self._collect()
        saved = self._save()
        if self._meters or not saved:
            self._write_in(PERIOD)

    def _save(self) -> bool:
        """Write what is new; say whether that could be done."""
        try:
            with self._store.transaction():
                for billed in self._new():
                    self._store.add_billed(billed)
                self._store.set_note(_WRITTEN, _reading())
        except StoreError as error:
            _LOG.warning("billed seconds are written later: %s", error)
            return False
        self._unwritten.clear()
        return True


def unseen_seconds(reading: float, written: float, now: float, created_at: float) -> float:
    """Return how long a runner that lives was not seen by any gateway.

    Parameters
    ----------
    reading, written : float
        What the machine's own clock says, and what it said when its seconds were last written.
    now, created_at : float
        Unix seconds: a runner that was started later than that is not older than itself.
    """
    return max(0.0, min(reading - written, now - created_at))


def day_of(at: float) -> str:
    """Return the day of a time (unix seconds) in UTC, as 2026-01-31."""
    return time.strftime("%Y-%m-%d", time.gmtime(at))


def _reading() -> str:
    return repr(time.monotonic())
