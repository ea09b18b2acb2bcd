"""What each state of a runner means: to its row, to its fleet, and to who waits for it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from fal_notebook.exceptions import DeployError, StoreError
from fal_notebook.gateway import errors
from fal_notebook.gateway.fleet import Fleet, Runner
from fal_notebook.gateway.store import Store
from fal_notebook.gateway.upstream import Pool
from fal_notebook.runner import listening

# A runner that ends by itself earlier than this, before any request, has failed to start.
PROVEN_AFTER = 10.0

ENDING = ("DRAINING", "TERMINATING", "TERMINATED")
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

    def enter(self, state: str, cause: str = "") -> None:
        """Change the state: one transaction, one event, one look of the controller."""
        row = self._runner.row
        row.state = state
        row.cause = cause or row.cause
        data = {"runner": row.id, "revision": row.revision, "state": state, "cause": row.cause}
        try:
            with self._store.transaction():
                self._store.put(row)
                self._store.emit("runner", row.owner, row.app, data)
        except StoreError:  # it serves all the same; its next state may be recorded again
            _LOG.exception("the state %s of runner %s was not recorded", state, row.id)
        self._fleet.changed()
        self._on_change(self._fleet)

    def ready(
        self, openapi: dict[str, Any], address: str | None = None, fixed_port: bool = False
    ) -> None:
        """Let the runner serve, or the user's server at `address`; who waits gets it."""
        runner = self._runner
        runner.openapi = openapi
        runner.direct = Pool(address, reuse=False) if address else None
        runner.fixed_port = fixed_port
        if runner.row.ready_at is None:
            runner.since = runner.row.ready_at = time.time()
            asyncio.get_running_loop().call_later(PROVEN_AFTER, self._fleet.proven, runner)
        self.enter("IDLE")
        if not runner.ready.done():
            runner.ready.set_result(None)
        self._fleet.grant()

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
                self._fleet.failed(error, runner.row.created_at)

    def gone(self) -> None:
        """Let no request go to the runner, which has ended; was it of no use, that is a failure."""
        runner = self._runner
        if runner.row.state != "IDLE":
            return
        age = time.time() - (runner.row.ready_at or 0)
        if age < PROVEN_AFTER and not runner.in_flight and runner.last_request_at is None:
            what = runner.row.cause or "the runner ended by itself"
            error = f"{what} {age:.1f} s after it was ready"
            self._fleet.failed(error, runner.row.created_at)
        self.enter("TERMINATING")

    def ended(self, cause: str) -> None:
        """Close the life; `cause` is recorded unless one is known."""
        runner = self._runner
        runner.row.ended_at = time.time()
        self.enter("TERMINATED", runner.row.cause or cause)
        runner.pool.close()
        runner.ended.set()
        del self._fleet.runners[runner.row.id]
        listening.forget(runner.row.address)
        self._on_change(self._fleet)
