"""One app's runners and the requests that wait for one: who serves the next request."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, NamedTuple

from fal_notebook.gateway import autoscaler, clock, plan
from fal_notebook.gateway.meter import Meter
from fal_notebook.gateway.metrics import AppMetrics
from fal_notebook.gateway.starts import Birth
from fal_notebook.gateway.store import ErrorGroup, Revision, RunnerRow
from fal_notebook.gateway.transitions import LIVE
from fal_notebook.gateway.upstream import Pool
from fal_notebook.gateway.waiting import Waiter, Waiting

SAMPLE_PERIOD = 0.1
SAMPLES_KEPT = 600.0  # seconds

# fal's defaults (seconds) for options that are None when they are not given.
REQUEST_TIMEOUT = 3600.0
STARTUP_TIMEOUT = 600.0

# Of a runner what the autoscaler looks at: to it IDLE is as RUNNING.
_OBSERVED = attrgetter("row.id", "row.state", "in_flight", "since", "last_request_at")


class Sample(NamedTuple):
    """The load of an app at a time (unix seconds)."""

    at: float
    runners: int
    in_flight: int
    queued: int


class SchedulingError(Exception):
    """No runner could be given to a request. `status` and `kind` are what the caller is told.

    Its text is for everybody; `for_owner` may hold what the app's own code said.
    """

    def __init__(self, status: int, kind: str, message: str, for_owner: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.for_owner = for_owner or message


def start_failure(for_owner: str) -> SchedulingError:
    """Return the error for requests to an app whose runners do not come up."""
    told = "the app's runners fail to start; %fal status tells its owner why"
    return SchedulingError(503, "runner_scheduling_failure", told, for_owner)


@dataclass(eq=False, slots=True)
class Runner:
    """A runner as the gateway uses it; its row in the store holds what must survive."""

    row: RunnerRow
    since: float = field(default_factory=lambda: clock.now())
    began: float = field(default_factory=lambda: clock.now())
    proving: bool = False
    grace: float = 0.0
    in_flight: int = 0
    tunnels: int = 0  # of these, WebSockets: they may stay for ever
    last_request_at: float | None = None
    openapi: dict[str, Any] = field(default_factory=dict)
    hints: frozenset[bytes] = frozenset()
    pool: Pool = field(default_factory=lambda: Pool(""))
    direct: Pool | None = None  # to the user's own server, which gets the requests
    fixed_port: bool = False
    notes: list[str] = field(default_factory=list)  # for whoever deploys
    on_note: Callable[[str], None] = lambda note: None
    meter: Meter = field(default_factory=Meter)
    birth: Birth | None = None  # of one that this gateway has started
    check_now: asyncio.Event = field(default_factory=asyncio.Event)  # an answer asked for it
    ready: asyncio.Future[None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    # How its process ended, in words, as soon as that is known; "" where that is nothing to tell.
    how: asyncio.Future[str] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def state(self) -> str:
        """The state to show: IDLE becomes RUNNING while requests are in flight."""
        return "RUNNING" if self.row.state == "IDLE" and self.in_flight else self.row.state

    @property
    def traffic(self) -> Pool:
        """The connections that requests take; `pool` is for what the gateway itself says."""
        return self.direct or self.pool

    @property
    def has_requests(self) -> bool:
        """Whether it is at work on requests that end by themselves."""
        return self.in_flight > self.tunnels and not self.ended.is_set()

    @property
    def live(self) -> bool:
        """Whether it serves or is on its way to."""
        return self.row.state in LIVE

    @property
    def failed(self) -> bool:
        """Whether its start has failed, also when its process has not ended yet."""
        return self.ready.done() and self.ready.exception() is not None


class Fleet:
    """Runners and waiting requests of one app, and the options that each request needs.

    It is not reachable before `configure` gave it an active revision.

    Parameters
    ----------
    on_need, on_idle : callable
        Called when requests wait or have gone, and when a runner has become idle.
    run_queued : callable
        Given a runner whose slot is taken and the number of a queued request, works on it and
        releases the slot.
    """

    def __init__(
        self,
        owner: str,
        name: str,
        metrics: AppMetrics,
        on_need: Callable[[Fleet], None],
        on_idle: Callable[[Fleet], None],
        run_queued: Callable[[Fleet, Runner, int], None],
    ) -> None:
        self.owner = owner
        self.name = name
        self.metrics = metrics
        self.revision: Revision | None = None
        self.scaling = autoscaler.Scaling()
        self.auth = "private"
        self.serve = False
        self.direct = False
        self.request_timeout = 0.0
        self.startup_timeout = 0.0
        self.runners: dict[str, Runner] = {}
        self.failures = 0
        self._ended_early = False  # a runner, and none has proven itself since
        # Runners in CRASH_BACKOFF, which have no process, each with what ends that state.
        self.crashed: dict[Runner, Callable[[], None]] = {}
        self.last_failure_at: float | None = None
        self.asked: autoscaler.Asked = ()
        self.last_error = ""
        self.samples: deque[Sample] = deque(maxlen=round(SAMPLES_KEPT / SAMPLE_PERIOD))
        self.on_sample: Callable[[dict[str, Any]], None] = lambda sample: None
        self.on_error: Callable[[ErrorGroup], None] = lambda failure: None
        self.on_answer: Callable[[bytes, int, float, str], None] = lambda *of_the_answer: None
        self.waiting = Waiting()
        self.put_off: set[int] = set()  # queued requests that will stand in line again
        self.start_timeout: float | None = None
        self.skip_retry_conditions: tuple[str, ...] = ()
        self.retries: dict[str, int] | None = None
        self.regions: tuple[str, ...] = ()
        self.private_logs = False
        self._on_need = on_need
        self._on_idle = on_idle
        self._run_queued = run_queued
        self._loop = asyncio.get_running_loop()
        self._sampling: asyncio.TimerHandle | None = None

    def configure(
        self, revision: Revision, options: dict[str, Any], scaling: autoscaler.Scaling
    ) -> None:
        """Serve `revision` from now on, with these effective options."""
        self.revision = revision
        self.scaling = scaling
        self.auth = options["auth"]
        self.serve = options["serve"] or revision.direct or revision.manifest.get("kind") == "app"
        self.direct = revision.direct
        self.request_timeout = float(options["request_timeout"] or REQUEST_TIMEOUT)
        self.startup_timeout = float(options["startup_timeout"] or STARTUP_TIMEOUT)
        self.start_timeout = options["request_start_timeout"] or None
        self.skip_retry_conditions = tuple(options["skip_retry_conditions"] or ())
        self.retries = plan.retries(options["retry_config"])
        self.regions = tuple(options["regions"] or ())
        self.private_logs = options["private_logs"]
        self.grant()
        self._on_need(self)

    # --- requests ----------------------------------------------------------------------------
    def answered(self, path: bytes, status: int, seconds: float, user: str | None) -> None:
        """Count a request that has ended, direct or queued; `user` None for one without a key."""
        self.metrics.complete(status, seconds)
        self.on_answer(path, status, seconds, user or "")

    def serves(self, path: bytes, method: str) -> bool:
        """Say whether the app's OpenAPI document has a path, one without a template."""
        paths = self.revision.openapi.get("paths") if self.revision is not None else None
        found = paths.get(path.decode("latin-1")) if isinstance(paths, dict) else None
        return isinstance(found, dict) and method in found

    def serving(self, hint: bytes | None = None) -> Runner | None:
        """Return the least loaded runner with a free slot, or None.

        One whose last answer named `hint` among its hints is taken before all others.
        """
        if hint is not None:
            fitting = [runner for runner in self.runners.values() if hint in runner.hints]
            if (best := self._least_loaded(fitting)) is not None:
                return best
        return self._least_loaded(self.runners.values())

    def _least_loaded(self, runners: Iterable[Runner]) -> Runner | None:
        best: Runner | None = None
        active = self.revision.id if self.revision else None
        for runner in runners:
            if (
                runner.row.state == "IDLE"
                and runner.row.revision == active
                and runner.in_flight < self.scaling.max_multiplexing
                and (best is None or runner.in_flight < best.in_flight)
            ):
                best = runner
        return best

    def take(self, hint: bytes | None = None) -> Runner | None:
        """Take a slot if one is free and nobody waits."""
        runner = None if self.waiting else self.serving(hint)
        if runner is not None:
            runner.in_flight += 1
            self.changed()
            if self.scaling.buffered:
                self._on_need(self)  # the buffer is above the load, so it grows with it
        return runner

    def enqueue(self, hint: bytes | None = None) -> Waiter:
        """Stand in line for a slot; `granted` resolves to a runner whose slot is taken."""
        waiter = self.waiting.add_caller(hint)
        self.grant()
        self.changed()
        self._on_need(self)
        return waiter

    def leave(self, waiter: Waiter) -> None:
        """Leave the line; a slot granted in the meantime is given back."""
        if not self.waiting.remove_caller(waiter) and _granted(waiter):
            self.release(waiter.granted.result())
        waiter.granted.cancel()
        self.changed()
        self._on_need(self)

    async def reserve(self, runner: Runner, patience: float) -> bool:
        """Take a slot of a certain runner, though it be one too many; say whether it serves.

        `patience` (seconds) is for one that was not heard of yet. One that does not serve has no
        slot taken.
        """
        runner.in_flight += 1
        ended = asyncio.ensure_future(runner.ended.wait())
        known: set[asyncio.Future[Any]] = {runner.ready, ended}
        await asyncio.wait(known, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        serves = runner.row.state == "IDLE" and runner in self.active()
        if not serves:
            self.release(runner)
        return serves

    def queue(self, number: int, low: bool, hint: bytes | None = None) -> None:
        """Let a queued request stand in line."""
        self.waiting.add_queued(number, low, hint)
        self.grant()
        self.changed()
        self._on_need(self)

    def unqueue(self, number: int) -> bool:
        """Take a queued request out of the line; say whether it was there."""
        found = self.waiting.remove_queued(number)
        self.changed()
        self._on_need(self)
        return found

    def release(self, runner: Runner) -> None:
        """Give a slot back; the next in line gets it."""
        runner.in_flight -= 1
        runner.last_request_at = clock.now()
        if self.failures or self._ended_early:
            self.proven(runner)
        if self.waiting:
            self.grant()
        self.changed()
        if self.scaling.buffered:
            self._on_need(self)  # from now on it is smaller
        elif not runner.in_flight:
            self._on_idle(self)

    def grant(self) -> None:
        """Give free slots to those who wait."""
        while self.waiting and (runner := self.serving()) is not None:
            following, hint = self.waiting.pop()
            if hint is not None:
                runner = self.serving(hint) or runner
            runner.in_flight += 1
            if isinstance(following, Waiter):
                following.granted.set_result(runner)
            else:
                self._run_queued(self, runner, following)

    def refuse(self, error: SchedulingError) -> None:
        """Fail every caller that waits; queued requests stay."""
        self.waiting.refuse(error)
        self.changed()

    def failed(self, error: str, began: float) -> None:
        """Count a runner that did not come up; who waits is told when no other can serve.

        Runners that started together and fail together are one failure.
        """
        if began > (self.last_failure_at or 0.0):
            self.failures += 1
        self.last_failure_at = clock.now()
        self.last_error = error
        if not any(runner.state in ("IDLE", "RUNNING") for runner in self.active()):
            self.refuse(start_failure(error))

    def ended_early(self, error: str, began: float) -> bool:
        """Count a runner that was ready and soon ended; once alone it says nothing of the next."""
        again, self._ended_early = self._ended_early, True
        if again:
            self.failed(error, began)
        return again

    def back_off(self, runner: Runner, at: float, end: Callable[[], None]) -> None:
        """Go on with the CRASH_BACKOFF in which the last gateway left a runner that failed."""
        self.failures = max(self.failures, runner.row.failures)
        self.last_failure_at = max(self.last_failure_at or 0.0, at)
        self.last_error = runner.row.cause
        self.crashed[runner] = end

    def proven(self, runner: Runner) -> None:
        """Forget failed starts: this runner has served a request, or for a while."""
        if runner.row.state == "IDLE":
            self._ended_early = False
            self.try_again()

    def next_try_at(self) -> float | None:
        """Return until when a crash backoff holds back starts, None where there is none."""
        if not self.failures or self.last_failure_at is None or self.active():
            return None
        left = self.last_failure_at + autoscaler.backoff(self.failures) - clock.now()
        return time.time() + left

    def shown(self) -> list[Runner]:
        """Return the runners that have not ended, and those in CRASH_BACKOFF."""
        return [*self.runners.values(), *self.crashed]

    def try_again(self) -> None:
        """Forget failed starts: what they failed of has been mended."""
        if self.failures:
            self.failures = 0
            self.tried()
            self._on_need(self)

    def tried(self) -> None:
        """Let no runner be in CRASH_BACKOFF any more: the next is started, or need not be."""
        crashed, self.crashed = self.crashed, {}
        for end in crashed.values():
            end()

    def retire(self) -> None:
        """Serve no more: the app was deleted."""
        self.revision = None
        self.failures = 0
        self.tried()
        self.refuse(SchedulingError(404, "bad_request", "the app was deleted"))

    # --- what the autoscaler sees ------------------------------------------------------------
    def observe(self, now: float) -> autoscaler.Observed:
        """Return the load of the active revision."""
        queued, next_due_at = self.waiting.due(now, self.scaling.scaling_delay)
        return autoscaler.Observed(
            runners=autoscaler.arranged(map(_OBSERVED, self.active())),
            queued=queued,
            next_due_at=next_due_at,
            failures=self.failures,
            last_failure_at=self.last_failure_at,
            asked=self.asked,
        )

    def active(self) -> list[Runner]:
        """Return the live runners of the active revision."""
        active = self.revision.id if self.revision else None
        runners = self.runners.values()
        return [r for r in runners if r.row.state in LIVE and r.row.revision == active]

    @property
    def is_failing(self) -> bool:
        """Whether runners do not come up, and none is up (CRASH_BACKOFF)."""
        return self.failures > 0 and all(runner.failed for runner in self.active())

    # --- the live picture --------------------------------------------------------------------
    def changed(self) -> None:
        """Take a sample soon; at most ten in a second."""
        if self._sampling is None:
            self._sampling = self._loop.call_later(SAMPLE_PERIOD, self._sample)

    def sample(self) -> Sample:
        """Return the present load: runners that are up or starting, in flight, queued."""
        live = [r for r in self.runners.values() if r.row.state != "TERMINATED"]
        in_flight = sum(r.in_flight for r in live)
        return Sample(time.time(), len(live), in_flight, len(self.waiting) + len(self.put_off))

    def _sample(self) -> None:
        self._sampling = None
        now = clock.now()
        for runner in self.runners.values():
            busy = runner.in_flight, runner.last_request_at
            runner.meter.look(now - SAMPLE_PERIOD, now, *busy)
        sample = self.sample()
        self.samples.append(sample)
        while self.samples[0].at < sample.at - SAMPLES_KEPT:
            self.samples.popleft()
        self.on_sample(sample._asdict())


def _granted(waiter: Waiter) -> bool:
    future = waiter.granted
    return future.done() and not future.cancelled() and future.exception() is None
