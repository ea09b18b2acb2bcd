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
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter, itemgetter
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

_since, _when = attrgetter("since"), itemgetter(1)


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
        Requests that it works on; 0 until it is ready.
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


class Starting(NamedTuple):
    """A runner that is not ready yet, and when it was created."""

    state: str
    since: float
    id: str


# Since when a ready runner has had no request, and its id. So plain because each decision of a
# gateway makes many.
Idle = tuple[float, str]


class Runners(NamedTuple):
    """All runners of one app: those that may go by themselves, the others only counted.

    Whoever keeps them so need not look at all of them to decide about a few.

    Attributes
    ----------
    starting : collection of Starting
    unused : sequence of Idle
        Those that never had a request, sorted.
    used : sequence of Idle
        Those that had, sorted.
    busy : int
        Those that work on requests.
    in_flight : int
        The requests that these work on.
    """

    starting: Collection[Starting] = ()
    unused: Sequence[Idle] = ()
    used: Sequence[Idle] = ()
    busy: int = 0
    in_flight: int = 0

    @property
    def ready(self) -> int:
        """How many are up."""
        return len(self.unused) + len(self.used) + self.busy


def arranged(
    runners: Iterable[tuple[str, str, int, float, float | None]],
) -> Runners:
    """Return runners, each with what a `Runner` says of it, as they are decided about."""
    starting: list[Starting] = []
    unused: list[Idle] = []
    used: list[Idle] = []
    busy = load = 0
    for name, state, in_flight, since, last_request_at in runners:
        if state in _STARTING:
            starting.append(Starting(state, since, name))
        elif state not in _READY:
            continue
        elif in_flight:
            busy += 1
            load += in_flight
        elif last_request_at is None:
            unused.append((since, name))
        else:
            used.append((last_request_at, name))
    return Runners(starting, sorted(unused), sorted(used), busy, load)


class Observed(NamedTuple):
    """What is known of one app at one moment; times are on the clock of ``now``.

    Attributes
    ----------
    runners : Runners
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

    runners: Runners = Runners()
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
    past = (*before[:-1], (before[-1][0], now)) if before else ()
    kept = slice(bisect_right(past, now - memory, key=_when), bisect_left(past, -target, key=_low))
    return (*past[kept], (target, now))


def _last_asked(asked: Asked, runners: int, now: float) -> float:
    """Return when the target was last as high as so many runners, as far as that is known."""
    if asked and asked[-1][0] >= runners:
        return now
    number = bisect_right(asked, -runners, key=_low)
    return asked[number - 1][1] if number else -math.inf


def _low(pair: tuple[int, float]) -> int:
    return -pair[0]


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
    runners = observed.runners
    live = len(runners.starting) + runners.ready
    if not observed.load_known:
        return _without_load(scaling, observed, live, now)
    target = wanted(scaling, observed.queued + runners.in_flight)
    # Another request coming due changes nothing for an app that is at its maximum.
    due = observed.next_due_at if target < scaling.max_concurrency else None
    if live < target:
        return _start(target, target - live, observed, due, now)
    if live > target:
        surplus = _Surplus(scaling, target, observed, now)
        if runners.starting:
            surplus.stop_starting()
        surplus.stop_idle()
        return Decision(target, stop=tuple(surplus.stop), wake_at=_wake(now, due, surplus.wake_at))
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


class _Surplus:
    """Picks who goes of too many runners: of each kind those whose time has come.

    Of idle runners only so many are looked at as go, and the first of each kind that stays: all
    behind it stay longer.
    """

    def __init__(self, scaling: Scaling, target: int, observed: Observed, now: float) -> None:
        self.stop: list[str] = []
        self._later: list[float] = []  # until when those stay that might have gone
        self._scaling = scaling
        self._now = now
        self._runners = observed.runners
        self._asked = observed.asked
        self._ready = self._runners.ready
        self._live = len(self._runners.starting) + self._ready
        self._target = target
        self._left = self._live - target
        self._excess = self._live - scaling.max_concurrency

    @property
    def wake_at(self) -> float | None:
        """When the next may go, as long as there are too many."""
        return min(self._later, default=None) if self._left else None

    def stop_starting(self) -> None:
        """Let surplus starts go, the least advanced and youngest first."""
        hold = max(UNUSED_KEEP_ALIVE, self._scaling.keep_alive)
        asked_for = memory(self._scaling)
        first = max(min(map(_since, self._runners.starting)) + hold, self._last_asked() + asked_for)
        if first > self._now and self._excess <= 0:
            # By far the most frequent answer, so it is found without sorting anything.
            self._later.append(first)
            return
        for start in self._starts():
            if self._left:
                self._goes(start.id, start.since + hold, asked_for)

    def stop_idle(self) -> None:
        """Let surplus idle runners go, the longest idle first."""
        keep_alive = self._scaling.keep_alive
        # A runner that was used goes by its requests, unless it is there for a buffer.
        by_target = keep_alive if self._scaling.buffered else None
        unused, used = self._runners.unused, self._runners.used
        heads: list[tuple[Idle, int, Sequence[Idle], float, float | None]] = []
        if unused:
            heads.append((unused[0], 0, unused, UNUSED_KEEP_ALIVE, memory(self._scaling)))
        if used:
            heads.append((used[0], 0, used, keep_alive, by_target))
        spare = self._ready - self._target
        while heads and self._left and spare > 0:
            # Of at most two, the one that is idle for longer.
            (since, runner), place, kind, hold, asked_for = heads.pop(heads[0] > heads[-1])
            if self._goes(runner, since + hold, asked_for):
                spare -= 1
                if (place := place + 1) < len(kind):
                    heads.append((kind[place], place, kind, hold, asked_for))

    def _starts(self) -> list[Starting]:
        """Return the starts that may be given up, first to go first."""
        found = sorted(self._runners.starting, key=_order)
        if not self._runners.ready and found[-1].state == "SETUP":
            found.pop()
        return found

    def _goes(self, runner: str, stays_until: float, asked_for: float | None) -> bool:
        """Stop a runner if its time has come, or at once above the maximum; say whether.

        Unless `asked_for` is None, it stays so long after the target last asked for it, too.
        """
        if asked_for is not None:
            stays_until = max(stays_until, self._last_asked() + asked_for)
        if stays_until > self._now and len(self.stop) >= self._excess:
            self._later.append(stays_until)
            return False
        self.stop.append(runner)
        self._left -= 1
        return True

    def _last_asked(self) -> float:
        return _last_asked(self._asked, self._live - len(self.stop), self._now)


def _order(start: Starting) -> tuple[int, float, str]:
    return _STARTING[start.state], -start.since, start.id


def _wake(now: float, first: float | None, second: float | None = None) -> float | None:
    if first is None or (second is not None and second < first):
        first = second
    if first is None:
        return None
    soonest = now + SHORTEST_WAIT
    return first if first > soonest else soonest
