"""Decides how many runners an app should have; how they start and stop is left to the controller.

``decide`` is a pure function of the settings, one observation and ``now``. The rules, in order:

1. ``need`` is the number of runners for the requests in flight and those queued past
   ``scaling_delay``; the target adds the buffer and stays between minimum and maximum
   (the maximum wins). Runners that are still starting count toward it.
2. Too few runners: the difference is started, unless a crash backoff holds it back.
3. Too many: a runner with a request in flight is never stopped. Of the others go, in this order,
   a. runners that are still starting, the least advanced and youngest first, once they are
      ``max(10, keep_alive)`` seconds old: a cancelled request does not throw away a start that
      the next one would need again. With no runner ready, one in SETUP is let finish, or clients
      that give up sooner than the setup takes would never see a runner come up;
   b. idle runners, the longest idle first, ``keep_alive`` seconds after their last request, or
      10 s after they became ready when they never had one. Starting runners do not stand in for
      ready ones here: as many ready runners as the target asks for stay.
   Those that never had a request stay 10 s after the target last asked for so many. With a buffer
   all stay for keep_alive after that, too, or they would come and go with every pause between two
   requests: a buffer's runners may have none for ever.
   What exceeds ``max_concurrency`` goes at once, without any keep_alive.
4. No data is not zero: with an unknown load nothing stops, and only the minimum is started.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple

UNUSED_KEEP_ALIVE = 10.0
"""Seconds that a runner without any request stays when nothing asks to keep it."""

BACKOFF_STEP = 30.0
BACKOFF_MAX = 600.0

# A wake-up that is already due comes this much later, so that a late look cannot spin the loop.
SHORTEST_WAIT = 0.01

# The more advanced a start is, the later it is given up.
_STARTING = {"PENDING": 0, "DOCKER_PULL": 1, "SETUP": 2}
_READY = frozenset({"IDLE", "RUNNING"})

_state, _in_flight = attrgetter("state"), attrgetter("in_flight")
_last_request_at = attrgetter("last_request_at")


# Until when the target was how high: ever lower targets, ever later; the last one is in force.
Asked = tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Scaling:
    """The options of an app that decide about its size, with the names and units of its options.

    ``scaling_delay`` is applied by whoever counts ``Observed.queued``.
    """

    min_concurrency: int = 0
    max_concurrency: int = 1
    max_multiplexing: int = 1
    concurrency_buffer: int = 0
    concurrency_buffer_perc: int = 0
    scaling_delay: float = 0.0
    keep_alive: float = 10.0

    @property
    def buffered(self) -> bool:
        """Whether there are to be more runners than the load needs."""
        return bool(self.concurrency_buffer or self.concurrency_buffer_perc)


class Runner(NamedTuple):
    """One runner as the gateway sees it.

    Attributes
    ----------
    id : str
    state : str
        PENDING, DOCKER_PULL, SETUP, IDLE or RUNNING; a runner in any other state is ignored.
    in_flight : int
        Requests that it works on.
    since : float
        When it was created, or, once ready, when it became IDLE for the first time.
    last_request_at : float or None
        When its last request ended; None if it never had one.
    """

    id: str
    state: str
    in_flight: int
    since: float
    last_request_at: float | None = None


class Observed(NamedTuple):
    """What is known of one app at one moment; times are on the clock of ``now``.

    Attributes
    ----------
    runners : tuple of Runner
    queued : int
        Requests that have waited longer than ``scaling_delay`` (all of them if that is 0).
    next_due_at : float or None
        When the next waiting request passes ``scaling_delay``.
    failures : int
        Consecutive failed starts.
    last_failure_at : float or None
    load_known : bool
        False when in-flight counts or the queue could not be read.
    asked : tuple
        What `asked` made of the targets before.
    """

    runners: tuple[Runner, ...]
    queued: int = 0
    next_due_at: float | None = None
    failures: int = 0
    last_failure_at: float | None = None
    load_known: bool = True
    asked: Asked = ()


class Decision(NamedTuple):
    """What to do now.

    Attributes
    ----------
    target : int
        Runners that the load asks for, within minimum and maximum.
    start : int
        Runners to start; 0 whenever `stop` names any.
    stop : tuple of str
        Ids of runners to stop; none of them has a request in flight.
    wake_at : float or None
        Earliest time, later than now, at which the answer could differ without a new event.
    blocked_until : float or None
        Set while a crash backoff holds back runners that the target asks for.
    """

    target: int
    start: int = 0
    stop: tuple[str, ...] = ()
    wake_at: float | None = None
    blocked_until: float | None = None


def backoff(failures: int) -> float:
    """Return the seconds without a new start after this many consecutive failed ones."""
    return min(BACKOFF_STEP * max(failures, 0), BACKOFF_MAX)


def memory(scaling: Scaling) -> float:
    """Return for how many seconds it matters how high the target was."""
    return max(UNUSED_KEEP_ALIVE, scaling.keep_alive if scaling.buffered else 0.0)


def asked(before: Asked, target: int, now: float, memory: float = UNUSED_KEEP_ALIVE) -> Asked:
    """Return what to observe next time: that the target is so high from now on."""
    if before and before[-1][0] == target:
        return before
    long_ago = now - memory
    past = [*before[:-1], *((level, now) for level, _ in before[-1:])]
    return (*[pair for pair in past if pair[0] > target and pair[1] > long_ago], (target, now))


def decide(scaling: Scaling, observed: Observed, now: float) -> Decision:
    """Decide what to start and stop.

    Parameters
    ----------
    scaling : Scaling
    observed : Observed
    now : float
        Seconds, on the same clock as all times in `observed`.

    Returns
    -------
    Decision
        Carried out at once, it leads to an observation for which there is nothing more to do.
    """
    ready: Sequence[Runner] = observed.runners
    starting: Sequence[Runner] = ()
    if not _READY.issuperset(map(_state, ready)):  # mostly it is
        starting = [runner for runner in ready if runner.state in _STARTING]
        ready = [runner for runner in ready if runner.state in _READY]
    live = len(starting) + len(ready)
    if not observed.load_known:
        return _without_load(scaling, observed, live, now)
    load = observed.queued + sum(map(_in_flight, ready)) + sum(map(_in_flight, starting))
    target = wanted(scaling, load)
    # Another request coming due changes nothing for an app that is at its maximum.
    due = observed.next_due_at if target < scaling.max_concurrency else None
    if live < target:
        return _start(target, target - live, observed, due, now)
    if live > target:
        return _stop(scaling, target, starting, ready, observed.asked, due, now)
    return Decision(target, wake_at=_wake(now, due))


def wanted(scaling: Scaling, load: int) -> int:
    """Return how many runners so many requests ask for, within minimum and maximum."""
    need = -(-load // scaling.max_multiplexing)
    share = -(-need * scaling.concurrency_buffer_perc // 100)
    buffer = max(scaling.concurrency_buffer, share)
    return min(scaling.max_concurrency, max(scaling.min_concurrency, need + buffer))


def _without_load(scaling: Scaling, observed: Observed, live: int, now: float) -> Decision:
    floor = min(scaling.min_concurrency, scaling.max_concurrency)
    if live < floor:
        return _start(floor, floor - live, observed, None, now)
    return Decision(min(live, scaling.max_concurrency))


def _start(
    target: int, missing: int, observed: Observed, due: float | None, now: float
) -> Decision:
    if observed.failures > 0 and observed.last_failure_at is not None:
        until = observed.last_failure_at + backoff(observed.failures)
        if until > now:
            return Decision(target, wake_at=_wake(now, due, until), blocked_until=until)
    return Decision(target, start=missing, wake_at=_wake(now, due))


def _stop(
    scaling: Scaling,
    target: int,
    starting: Sequence[Runner],
    ready: Sequence[Runner],
    asked: Asked,
    due: float | None,
    now: float,
) -> Decision:
    live = len(starting) + len(ready)
    excess = live - scaling.max_concurrency
    soonest = _soonest(scaling, target, starting, ready, _last_asked(asked, live, now))
    if excess <= 0 and (soonest is None or soonest > now):
        # By far the most frequent answer for a surplus, so it is found without sorting anything.
        return Decision(target, wake_at=_wake(now, due, soonest))
    surplus = live - target
    spare_ready = len(ready) - target
    stop: list[str] = []
    later: float | None = None
    for stays_until, runner in _order(scaling, starting, ready):
        is_ready = runner.state in _READY
        if surplus == 0 or (is_ready and spare_ready <= 0):
            break
        if runner.last_request_at is None or scaling.buffered:
            hold = memory(scaling) if runner.last_request_at is None else scaling.keep_alive
            stays_until = max(stays_until, _last_asked(asked, live - len(stop), now) + hold)
        if stays_until > now and len(stop) >= excess:
            later = stays_until if later is None else min(later, stays_until)
            continue
        stop.append(runner.id)
        surplus -= 1
        spare_ready -= is_ready
    return Decision(target, stop=tuple(stop), wake_at=_wake(now, due, later if surplus else None))


def _last_asked(asked: Asked, runners: int, now: float) -> float:
    """Return when the target was last as high as so many runners, as far as that is known."""
    if asked and asked[-1][0] >= runners:
        return now
    return next((at for level, at in reversed(asked) if level >= runners), -math.inf)


def _soonest(
    scaling: Scaling,
    target: int,
    starting: Sequence[Runner],
    ready: Sequence[Runner],
    last_asked: float,
) -> float | None:
    hold = max(UNUSED_KEEP_ALIVE, scaling.keep_alive)
    unused_until = last_asked + memory(scaling)
    times = [max(runner.since + hold, unused_until) for runner in starting]
    if len(ready) > target:
        idle = [runner for runner in ready if not runner.in_flight]
        used = [at for at in map(_last_request_at, idle) if at is not None]
        if used:
            oldest = max(min(used), last_asked) if scaling.buffered else min(used)
            times.append(oldest + scaling.keep_alive)
        if len(used) < len(idle):
            oldest = min([r.since for r in idle if r.last_request_at is None])
            times.append(max(oldest + UNUSED_KEEP_ALIVE, unused_until))
    return min(times, default=None)


def _order(
    scaling: Scaling, starting: Sequence[Runner], ready: Sequence[Runner]
) -> list[tuple[float, Runner]]:
    """Return who may go, first to go first, each after the time until which it stays."""
    starts = sorted((_STARTING[r.state], -r.since, r.id, r) for r in starting if r.in_flight == 0)
    if starts and not ready and starts[-1][3].state == "SETUP":
        starts.pop()
    hold = max(UNUSED_KEEP_ALIVE, scaling.keep_alive)
    idle = sorted((_idle_since(r), r.id, r) for r in ready if r.in_flight == 0)
    return [(r.since + hold, r) for *_, r in starts] + [
        (since + (UNUSED_KEEP_ALIVE if r.last_request_at is None else scaling.keep_alive), r)
        for since, _, r in idle
    ]


def _idle_since(runner: Runner) -> float:
    return runner.since if runner.last_request_at is None else runner.last_request_at


def _wake(now: float, *times: float | None) -> float | None:
    known = [time for time in times if time is not None]
    return max(min(known), now + SHORTEST_WAIT) if known else None
