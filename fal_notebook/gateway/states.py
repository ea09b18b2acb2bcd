"""What each state of a runner means: to its row, to its fleet, and to who waits for it."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable
from typing import Any

from fal_notebook.exceptions import DeployError, StoreError
from fal_notebook.gateway import clock, errors, transitions
from fal_notebook.gateway.fleet import Fleet, Runner
from fal_notebook.gateway.store import Store
from fal_notebook.gateway.transitions import ENDING
from fal_notebook.gateway.upstream import Pool
from fal_notebook.runner import listening

# A runner that ends by itself earlier than this (seconds), before any request, has proven nothing:
# the second one in a row has failed to start.
PROVEN_AFTER = 10.0

_LOG = logging.getLogger(__name__)


class States:
    """The states of one runner; `Life` decides on them.

    Parameters
    ----------
    on_change : callable
        Called with the fleet at every change.
    """

    def __init__(
        self, fleet: Fleet, runner: Runner, store: Store, on_change: Callable[[Fleet], None]
    ) -> None:
        self._fleet = fleet
        self._runner = runner
        self._store = store
        self._on_change = on_change
        self._crashed = False

    def enter(self, state: str, cause: str = "") -> None:
        """Change the state: one transaction, one event, one look of the controller.

        Raises
        ------
        ValueError
            When that state cannot follow.
        """
        row = self._runner.row
        try:
            transitions.record(self._store, row, state, cause)
        except StoreError:  # it serves all the same; its next state may be recorded again
            _LOG.exception("the state %s of runner %s was not recorded", state, row.id)
        self._runner.meter.enter(state, clock.now())
        self._fleet.changed()
        self._on_change(self._fleet)

    def reached(self, line: dict[str, Any]) -> None:
        """Know what is told by a runner that could serve, or of the user's server below it."""
        address = line.get("address")
        self._runner.openapi = line["openapi"]
        self._runner.direct = Pool(address, reuse=False) if address else None
        self._runner.fixed_port = line.get("fixed_port", False)
        self._runner.notes = line.get("notes", [])

    def ready(self) -> None:
        """Let the runner serve; who waits gets it."""
        runner = self._runner
        if runner.birth is not None:
            runner.birth.mark("ready")
        if runner.row.ready_at is None:
            runner.since, runner.row.ready_at = clock.now(), time.time()
            asyncio.get_running_loop().call_later(PROVEN_AFTER, self._fleet.proven, runner)
        self.enter("IDLE", "it is ready")
        if not runner.ready.done():
            runner.ready.set_result(None)
        self._fleet.grant()
        if runner.birth is not None:
            runner.birth.tell()

    def request_failed(self, report: dict[str, Any], revision: int) -> None:
        """Record what the runner reports of requests that failed."""
        try:
            failure = errors.reported(report, self._runner.row, revision)
        except (KeyError, TypeError, ValueError):  # a runner of another version
            _LOG.warning("runner %s reported %r", self._runner.row.id, report)
            return
        self._fleet.on_error(failure)

    def failed(self, error: str) -> None:
        """Note that the runner did not come up; nothing if it did, or was told to end."""
        runner = self._runner
        if runner.ready.done() or runner.row.ready_at is not None:
            return
        runner.ready.set_exception(DeployError(error))
        runner.ready.exception()  # retrieved: nobody has to wait for it
        if runner.row.state not in ENDING:
            runner.row.cause = error
            if not runner.proving:
                self._crash(error)

    def gone(self) -> None:
        """Let no request go to the runner, which has ended; one after the other is a failure."""
        runner = self._runner
        if runner.row.state != "IDLE":
            return
        age = clock.now() - runner.since
        if age < PROVEN_AFTER and not runner.in_flight and runner.last_request_at is None:
            what = runner.row.cause or "the runner ended by itself"
            error = f"{what} {age:.1f} s after it was ready"
            self._crashed = self._fleet.ended_early(error, self._runner.began)
        self._terminate("its link has closed")

    def _crash(self, error: str) -> None:
        self._crashed = True
        self._fleet.failed(error, self._runner.began)

    def _terminate(self, cause: str) -> None:
        """Enter TERMINATING; a better cause may become known until the end."""
        known = self._runner.row.cause
        if self._runner.row.state != "TERMINATING":
            self.enter("TERMINATING", known or cause)
            self._runner.row.cause = known

    def ended(self, cause: str) -> None:
        """Close the life; `cause` is recorded unless one is known.

        One that did not come up is shown in CRASH_BACKOFF until the next is tried.
        """
        runner, fleet = self._runner, self._fleet
        runner.row.ended_at = time.time()
        cause = runner.row.cause or cause
        self._terminate(cause)
        if self._crashed and fleet.failures:
            runner.row.failures = fleet.failures
            self.enter("CRASH_BACKOFF", cause)
            fleet.crashed[runner] = functools.partial(self.enter, "TERMINATED")
        else:
            self.enter("TERMINATED", cause)
        runner.pool.close()
        runner.ended.set()
        del fleet.runners[runner.row.id]
        listening.forget(runner.row.address)
        self._on_change(fleet)
