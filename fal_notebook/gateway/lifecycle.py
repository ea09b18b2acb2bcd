"""All runners that live, of every app: starts and adopts them, ends one or all."""

from __future__ import annotations

import asyncio
import functools
import logging
import secrets
import time
import uuid
from collections.abc import Callable, Coroutine
from typing import Any

from fal_notebook.backends.targets import Targets
from fal_notebook.gateway import clock, plan, starts
from fal_notebook.gateway.billing import Billing
from fal_notebook.gateway.fleet import Fleet, Runner
from fal_notebook.gateway.health import Health, check_of
from fal_notebook.gateway.launch import Launcher
from fal_notebook.gateway.life import Life
from fal_notebook.gateway.logs.redaction import Redaction
from fal_notebook.gateway.states import States
from fal_notebook.gateway.store import Revision, RunnerRow, Store
from fal_notebook.gateway.upstream import Pool

# How long killed runners may take to be gone.
KILL_GRACE = 5.0

_LOG = logging.getLogger(__name__)


class Lifecycle:
    """Gives each runner its `Life` and keeps the tasks that live it.

    Parameters
    ----------
    on_change : callable
        Called with the fleet whenever one of its runners changed state.
    """

    def __init__(
        self,
        store: Store,
        targets: Targets,
        launcher: Launcher,
        on_change: Callable[[Fleet], None],
        redaction: Redaction,
        billing: Billing,
    ) -> None:
        self._redaction = redaction
        self._billing = billing
        self._store = store
        self._targets = targets
        self._launcher = launcher
        self._on_change = on_change
        self._tasks: set[asyncio.Task[Any]] = set()
        self._lives: dict[Runner, Life] = {}

    def start(
        self, fleet: Fleet, revision: Revision | None = None, proving: bool = False
    ) -> Runner:
        """Start a runner of the fleet's active revision, or of `revision` to prove it."""
        revision = revision or fleet.revision
        assert revision is not None
        row = RunnerRow(
            id=uuid.uuid4().hex[:12],
            owner=revision.owner,
            app=revision.app,
            revision=revision.id,
            state="",
            secret=secrets.token_urlsafe(24),
            machine_type=revision.machine["name"],
            failures=fleet.failures,
            region=plan.region(
                revision.options["regions"] if proving else fleet.regions,
                [other.row.region for other in fleet.runners.values() if other.live],
            ),
        )
        runner = Runner(row, proving=proving)
        record = functools.partial(starts.record, self._store, row, revision.number)
        runner.birth = starts.Birth(record)
        if not proving:
            fleet.tried()
        self._begin(fleet, runner, revision, adopted=False)
        return runner

    def adopt(self, fleet: Fleet, row: RunnerRow, revision: Revision) -> None:
        """Take over a runner that outlived an earlier gateway, or record that it did not.

        It serves again once its link says that it lives; its keep_alive starts anew, for nobody
        knows when its last request was, and until then it is one that has just begun to start.
        """
        ending = row.state in ("DRAINING", "TERMINATING")
        row.cause = row.cause if ending else ""  # why it lives is not why it will end
        runner = Runner(row, began=min(clock.now(), row.created_at))
        serves = fleet.revision is not None and fleet.revision.id == revision.id
        if row.ready_at is not None and not ending:
            runner.last_request_at = clock.now()
        elif serves and not ending:  # it is not known yet whether it comes up
            fleet.failures = max(fleet.failures, row.failures)
        life = self._begin(fleet, runner, revision, adopted=True)
        if ending:
            self._spawn(life.drain())

    def back_off(self, fleet: Fleet, row: RunnerRow) -> None:
        """Hold back starts of an app whose last one, this runner, failed under another gateway."""
        runner = Runner(row)
        states = States(fleet, runner, self._store, self._on_change)
        failed_at = clock.now() - max(0.0, time.time() - (row.ended_at or 0.0))
        fleet.back_off(runner, failed_at, functools.partial(states.enter, "TERMINATED"))

    def stop(self, runner: Runner, cause: str) -> None:
        """Drain a runner and end it; after the grace it is killed."""
        if runner in self._lives:
            self._lives[runner].stop(cause)

    def retire(self, runner: Runner, cause: str) -> None:
        """Drain a runner that another takes the place of: first it finishes its requests."""
        if runner in self._lives:
            self._lives[runner].stop(cause, patient=True)

    def kill(self, runner: Runner, cause: str) -> None:
        """End a runner at once, with what it has in flight."""
        if runner in self._lives:
            self._lives[runner].kill(cause)

    async def stop_all(self, cause: str, grace: float) -> None:
        """Drain every runner, also of deleted apps; kill after `grace` seconds what is left."""
        for life in list(self._lives.values()):
            life.stop(cause)
            life.hurry()
        for step in (grace, KILL_GRACE):
            ending = [asyncio.ensure_future(runner.ended.wait()) for runner in self._lives]
            if ending:
                _, late = await asyncio.wait(ending, timeout=step)
                for task in late:
                    task.cancel()
            for life in list(self._lives.values()):
                life.kill(f"{cause}, and the runner did not end in time")

    async def close(self) -> None:
        """Stop watching; runners live on and are adopted by the next gateway."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _begin(self, fleet: Fleet, runner: Runner, revision: Revision, adopted: bool) -> Life:
        runner.grace = revision.options["termination_grace_period_seconds"]
        runner.pool = Pool(runner.row.address)
        fleet.runners[runner.row.id] = runner
        states = States(fleet, runner, self._store, self._on_change)
        backend = self._targets[revision.target]
        runner.meter = self._billing.meter(runner.row, revision)
        if adopted:
            if backend.alive(runner.row.process):
                self._billing.adopt(runner.meter, runner.row)
            runner.meter.enter(runner.row.state, clock.now())
        check = check_of(revision)
        health = Health(runner, check) if check is not None else None
        given = self._launcher, self._spawn, self._redaction, health
        life = Life(runner, states, backend, *given)
        self._lives[runner] = life
        if not adopted:
            states.enter("PENDING", "it proves its revision" if runner.proving else "scaled up")
        elif runner.row.state == "IDLE":
            states.enter("SETUP", "a new gateway takes it over")
        self._spawn(self._live(runner, life, revision, adopted))
        return life

    async def _live(self, runner: Runner, life: Life, revision: Revision, adopted: bool) -> None:
        await life.run(revision, adopted)
        del self._lives[runner]
        self._billing.ended()

    def _spawn(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _LOG.error("a task of a runner's life failed", exc_info=error)
