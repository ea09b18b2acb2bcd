"""Replays a trace of requests through the autoscaler's own `decide`, in virtual time.

Nothing sleeps, listens or starts: a day of traffic takes seconds. Requests go to the least loaded
runner with a free slot and wait in one line where there is none, as in the gateway; runners need
the given seconds to start. The gateway decides at every change, this decides once per tick.
"""

from __future__ import annotations

import functools
import heapq
import math
from array import array
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from fal_notebook.gateway.autoscaler import (
    UNUSED_KEEP_ALIVE,
    Asked,
    Idle,
    Observed,
    Runners,
    Scaling,
    Starting,
    asked,
    decide,
    memory,
    wanted,
)
from fal_notebook.gateway.meter import billed


class Request(NamedTuple):
    """When a request comes and how long a runner works on it (seconds)."""

    at: float
    seconds: float


_FIRST = Request(-math.inf, 0.0)


class Start(NamedTuple):
    """How long a runner is PENDING, which is not billed, and then in SETUP (seconds)."""

    pending: float = 0.0
    setup: float = 1.0


USUAL = Start()

# A runner's number has so many bits, which are the lower ones of its place.
_BITS = 40
_NUMBER = (1 << _BITS) - 1
# Later than that, and for longer, nothing is simulated (seconds): 30,000 years.
FOR_EVER = 1e12


@dataclass
class Simulation:
    """What became of a trace. Times are seconds on the trace's clock.

    Attributes
    ----------
    at, runners, in_flight, queued : array
        The live picture, one value for each tick at which something had happened; between two
        ticks nothing changed. `runners` counts those that start, too.
    waits : array
        Seconds that each request waited for a runner, in the order in which they began.
    started : int
        Runners that were started.
    cold_starts : int
        Requests whose runner was not ready yet when they came.
    unserved : int
        Requests that no runner took up until the end.
    billed : dict of str to float
        Seconds of all runners in SETUP, IDLE and RUNNING, as `meter.billed` counts them.
    """

    at: array[float] = field(default_factory=lambda: array("d"))
    runners: array[int] = field(default_factory=lambda: array("l"))
    in_flight: array[int] = field(default_factory=lambda: array("l"))
    queued: array[int] = field(default_factory=lambda: array("l"))
    waits: array[float] = field(default_factory=lambda: array("d"))
    started: int = 0
    cold_starts: int = 0
    unserved: int = 0
    billed: dict[str, float] = field(
        default_factory=lambda: {"SETUP": 0.0, "IDLE": 0.0, "RUNNING": 0.0}
    )


def simulate(
    trace: Iterable[Request],
    scaling: Scaling,
    start: Start = USUAL,
    tick: float = 0.1,
    gpus: int = 0,
) -> Simulation:
    """Replay a trace; the runners that stay without any load are ready when it begins.

    Parameters
    ----------
    trace : iterable of Request
        In the order of `at`.
    scaling : Scaling
    start : Start
        What each start takes.
    tick : float, default 0.1
        Seconds from one decision to the next; only ticks at which something happened count.
    gpus : int, default 0
        Those of one runner: its seconds are billed for each.

    Returns
    -------
    Simulation
        Until the runners have settled after the last request.

    Raises
    ------
    ValueError
        When the trace is not in order, or a number of it, of `start` or `tick` is none.
    """
    if not 0 < tick < math.inf or not all(0 <= seconds < math.inf for seconds in start):
        raise ValueError(
            f"give seconds from 0 on for a start, and more for a tick: {start}, {tick}"
        )
    return _World(scaling, start, tick, gpus).run(iter(trace))


@dataclass(eq=False, slots=True)
class _Runner:
    number: int
    since: float
    entered: float
    state: str = "STARTING"  # PENDING and then SETUP, which only the clock tells apart
    in_flight: int = 0
    last_request_at: float | None = None
    offered: set[int] = field(default_factory=set)
    idle: Idle | None = None  # as what the autoscaler sees it while it is

    def place(self) -> int:
        """Return where it stands among those with room: by its requests, then by its age."""
        return self.in_flight << _BITS | self.number


class _World:
    """All that there is at one moment of virtual time."""

    def __init__(self, scaling: Scaling, start: Start, tick: float, gpus: int) -> None:
        self._scaling = scaling
        self._memory = memory(scaling)
        self._wanted = functools.lru_cache(functools.partial(wanted, scaling))
        self._start = start
        self._tick = tick
        self._gpus = gpus
        self._spent = defaultdict[str, float](float)  # seconds of all runners by state
        self._now = 0.0
        self._runners: dict[int, _Runner] = {}
        # Those that may go, as the autoscaler sees them: each change is told here, so that a
        # decision need not look at all the others.
        self._starting: dict[int, Starting] = {}
        self._unused: list[Idle] = []
        self._used: list[Idle] = []
        # A heap of who may have room, as `_Runner.place` writes it: the least loaded comes first.
        self._free: list[int] = []
        # What happens to a runner next: it advances in its start, or a request of it ends.
        self._coming: list[tuple[float, int, _Runner]] = []
        self._number = 0
        self._in_flight = 0
        self._line: list[Request] = []  # all that ever waited, of which the first `_left` left
        self._left = 0
        self._due = 0  # how many of them were there longer than scaling_delay
        self._asked: Asked = ()
        self._calm_until = math.inf  # no runner that is ready goes before
        self._result = Simulation()

    def run(self, trace: Iterator[Request]) -> Simulation:
        """Live through the trace, tick by tick."""
        following = _in_order(_FIRST, next(trace, None))
        self._now = following.at if following else 0.0
        wake = self._settle()
        while (due := self._next(following, wake)) is not None:
            # Never before what is due: that a tick is a rounded float must not stop the clock.
            self._now = max(due, math.ceil(due / self._tick) * self._tick)
            following = self._happen(trace, following)
            wake = self._decide()
        return self._end()

    def _next(self, following: Request | None, wake: float | None) -> float | None:
        due = self._coming[0][0] if self._coming else math.inf
        if following is not None and following.at < due:
            due = following.at
        if wake is not None and wake < due:
            due = wake
        return due if due < math.inf else None

    def _settle(self) -> float | None:
        """Begin with the runners that stay without load, ready."""
        wake = self._decide()
        for runner in self._runners.values():
            self._ready(runner, self._now)
        self._coming.clear()
        return wake

    # --- requests ----------------------------------------------------------------------------
    def _happen(self, trace: Iterator[Request], following: Request | None) -> Request | None:
        """Let everything happen until now, in its order; return the request that comes next."""
        while following is not None and following.at <= self._now:
            self._pass(following.at)
            self._arrive(following)
            following = _in_order(following, next(trace, None))
        self._pass(self._now)
        return following

    def _pass(self, until: float) -> None:
        coming = self._coming
        while coming and coming[0][0] <= until:
            at, _, runner = heapq.heappop(coming)
            self._advance(runner, at)

    def _arrive(self, request: Request) -> None:
        runner = self._least_loaded()
        if runner is None:
            self._line.append(request)
        else:
            self._serve(runner, request, request.at)

    def _least_loaded(self) -> _Runner | None:
        """Return the oldest of the ready runners that have the fewest requests."""
        free, runners = self._free, self._runners
        while free:
            place = free[0]
            runner = runners.get(place & _NUMBER)
            if runner is not None:
                if runner.place() == place:
                    return runner
                runner.offered.discard(place)
            heapq.heappop(free)
        return None

    def _serve(self, runner: _Runner, request: Request, at: float) -> None:
        if not runner.in_flight:
            self._enter(runner, "RUNNING", at)
            self._take_up(runner)
            if len(self._runners) == 1:
                self._calm_until = math.inf  # nobody is idle
        runner.in_flight += 1
        self._in_flight += 1
        self._offer(runner)
        self._result.waits.append(at - request.at)
        self._result.cold_starts += runner.since > request.at
        self._come(at + request.seconds, runner)

    def _finish(self, runner: _Runner, at: float) -> None:
        runner.in_flight -= 1
        self._in_flight -= 1
        runner.last_request_at = at
        self._calm_until = min(self._calm_until, at + self._scaling.keep_alive)
        if not runner.in_flight:
            self._rest(runner, at)
        self._offer(runner)
        self._serve_waiting(runner, at)

    def _offer(self, runner: _Runner) -> None:
        if runner.in_flight < self._scaling.max_multiplexing:
            place = runner.place()
            if place not in runner.offered:
                runner.offered.add(place)
                heapq.heappush(self._free, place)

    def _serve_waiting(self, runner: _Runner, at: float) -> None:
        while self._left < len(self._line) and runner.in_flight < self._scaling.max_multiplexing:
            self._left += 1
            self._serve(runner, self._line[self._left - 1], at)

    # --- runners -----------------------------------------------------------------------------
    def _decide(self) -> float | None:
        """Have the autoscaler decide, and do it; return when it wants to look again."""
        queued, next_due_at = self._waiting() if self._left < len(self._line) else (0, None)
        target = self._wanted(self._in_flight + queued)
        if target == len(self._runners):
            return self._keep(target, next_due_at)
        if self._is_calm(target):
            return self._keep(target, self._calm_until)
        return self._obey(queued, next_due_at)

    def _keep(self, target: int, wake: float | None) -> float | None:
        self._asked = asked(self._asked, target, self._now, self._memory)
        self._look()
        return wake

    def _obey(self, queued: int, next_due_at: float | None) -> float | None:
        decision = decide(self._scaling, self._observed(queued, next_due_at), self._now)
        self._asked = asked(self._asked, decision.target, self._now, self._memory)
        for _ in range(decision.start):
            self._begin()
        for name in decision.stop:
            self._end_of(self._runners.pop(int(name)))
        if len(self._runners) > decision.target and not self._starting:
            self._calm_until = decision.wake_at or math.inf
        self._look()
        return decision.wake_at

    def _is_calm(self, target: int) -> bool:
        """Say whether `decide` would stop none of too many runners, without asking it.

        The time of none has come: of who was idle at the last decision, or became it since.
        """
        calm = not self._starting and self._left == len(self._line)
        return calm and target < len(self._runners) and self._now < self._calm_until

    def _end_of(self, runner: _Runner) -> None:
        if runner.idle is None:
            del self._starting[runner.number]
        else:
            self._take_up(runner)
        self._enter(runner, "TERMINATED", self._now)

    def _waiting(self) -> tuple[int, float | None]:
        """Return how many wait longer than scaling_delay, and when the next one will."""
        known, delay = len(self._line), self._scaling.scaling_delay
        while self._due < known and self._line[self._due].at + delay <= self._now:
            self._due += 1
        oldest_young = max(self._due, self._left)
        next_due_at = self._line[oldest_young].at + delay if oldest_young < known else None
        return max(0, self._due - self._left), next_due_at

    def _observed(self, queued: int, next_due_at: float | None) -> Observed:
        idle = len(self._unused) + len(self._used)
        busy = len(self._runners) - len(self._starting) - idle
        starting = self._advanced() if self._starting else ()
        runners = Runners(starting, self._unused, self._used, busy, self._in_flight)
        return Observed(runners, queued, next_due_at, 0, None, True, self._asked)

    def _advanced(self) -> list[Starting]:
        """Return the runners that start as they are now."""
        until = self._now - self._start.pending
        return [
            Starting("SETUP", since, name) if since <= until else Starting("PENDING", since, name)
            for _, since, name in self._starting.values()
        ]

    def _begin(self) -> None:
        self._result.started += 1
        number, now = self._result.started, self._now
        runner = self._runners[number] = _Runner(number, now, now)
        self._starting[number] = Starting("PENDING", now, str(number))
        self._come(now + self._start.pending + self._start.setup, runner)

    def _come(self, at: float, runner: _Runner) -> None:
        self._number += 1
        heapq.heappush(self._coming, (at, self._number, runner))

    def _advance(self, runner: _Runner, at: float) -> None:
        if runner.state == "RUNNING":
            self._finish(runner, at)
        elif runner.state == "STARTING":
            self._ready(runner, at)

    def _ready(self, runner: _Runner, at: float) -> None:
        del self._starting[runner.number]
        self._calm_until = min(self._calm_until, at + UNUSED_KEEP_ALIVE)
        runner.since = at
        self._rest(runner, at)
        self._offer(runner)
        self._serve_waiting(runner, at)

    def _rest(self, runner: _Runner, at: float) -> None:
        self._enter(runner, "IDLE", at)
        runner.idle = at, str(runner.number)
        insort(self._kind(runner), runner.idle)

    def _take_up(self, runner: _Runner) -> None:
        """Take a runner from those that are idle."""
        kind, idle = self._kind(runner), runner.idle
        assert idle is not None
        del kind[bisect_left(kind, idle)]
        runner.idle = None

    def _kind(self, runner: _Runner) -> list[Idle]:
        return self._unused if runner.last_request_at is None else self._used

    def _enter(self, runner: _Runner, state: str, at: float) -> None:
        seconds = at - runner.entered
        if runner.state == "STARTING":
            pending = min(seconds, self._start.pending)
            self._spent["PENDING"] += pending
            self._spent["SETUP"] += seconds - pending
        else:
            self._spent[runner.state] += seconds
        runner.state, runner.entered = state, at

    # --- the picture -------------------------------------------------------------------------
    def _look(self) -> None:
        result = self._result
        result.at.append(self._now)
        result.runners.append(len(self._runners))
        result.in_flight.append(self._in_flight)
        result.queued.append(len(self._line) - self._left)

    def _end(self) -> Simulation:
        for runner in self._runners.values():
            self._enter(runner, "TERMINATED", self._now)
        for state in self._result.billed:
            self._result.billed[state] = billed(state, self._spent[state], self._gpus)
        self._result.unserved = len(self._line) - self._left
        return self._result


def _in_order(before: Request, following: Request | None) -> Request | None:
    if following is not None and not before.at <= following.at < FOR_EVER:
        raise ValueError(f"the trace is not in order: {following.at} s comes after {before.at} s")
    if following is not None and not 0 <= following.seconds < FOR_EVER:
        raise ValueError(f"a request works for {following.seconds} s: give seconds from 0 to 1e12")
    return following
