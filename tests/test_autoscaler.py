"""The autoscaler: tables with a moved clock, properties, and whole apps in virtual time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fal_notebook.gateway.autoscaler import (
    Asked,
    Decision,
    Observed,
    Runner,
    Runners,
    Scaling,
    Starting,
    arranged,
    asked,
    backoff,
    decide,
)

NOW = 1000.0


def replace(value: Any, **changes: Any) -> Any:
    """Return a value with some of its fields changed."""
    if isinstance(value, tuple):
        return value._replace(**changes)  # type: ignore[attr-defined]
    return dataclasses.replace(value, **changes)


def for_all(*values: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Any]:
    """`given` without a deadline: a busy machine says nothing about a decision."""
    return lambda test: settings(deadline=None)(given(*values)(test))


def idle(id_: str, ago: float = 0.0) -> Runner:
    return Runner(id_, "IDLE", 0, since=NOW - 500, last_request_at=NOW - ago)


def unused(id_: str, ago: float = 0.0) -> Runner:
    return Runner(id_, "IDLE", 0, since=NOW - ago)


def busy(id_: str, in_flight: int = 1) -> Runner:
    return Runner(id_, "RUNNING", in_flight, since=NOW - 500, last_request_at=NOW - 400)


def starting(id_: str, ago: float = 0.0, state: str = "SETUP") -> Runner:
    return Runner(id_, state, 0, since=NOW - ago)


def seen(*runners: Runner, queued: int = 0, **others: object) -> Observed:
    return replace(Observed(arranged(runners), queued), **others)


# --- how many ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("load", "scaling", "target"),
    [
        (0, Scaling(), 0),
        (1, Scaling(), 1),
        (5, Scaling(max_concurrency=3), 3),
        (5, Scaling(max_concurrency=9), 5),
        (0, Scaling(min_concurrency=2, max_concurrency=9), 2),
        (3, Scaling(min_concurrency=2, max_concurrency=9), 3),
        (8, Scaling(max_concurrency=9, max_multiplexing=4), 2),
        (9, Scaling(max_concurrency=9, max_multiplexing=4), 3),
        (0, Scaling(max_concurrency=9, concurrency_buffer=2), 2),
        (0, Scaling(min_concurrency=1, max_concurrency=9, concurrency_buffer=2), 2),
        (3, Scaling(max_concurrency=9, concurrency_buffer=2), 5),
        (3, Scaling(max_concurrency=4, concurrency_buffer=2), 4),
        (0, Scaling(max_concurrency=9, concurrency_buffer_perc=50), 0),
        (3, Scaling(max_concurrency=9, concurrency_buffer_perc=50), 5),
        (10, Scaling(max_concurrency=99, concurrency_buffer_perc=10), 11),
        (10, Scaling(max_concurrency=99, concurrency_buffer=3, concurrency_buffer_perc=10), 13),
        (10, Scaling(max_concurrency=99, concurrency_buffer=3, concurrency_buffer_perc=200), 30),
        # The volume of a buffer is taken in runners, not in requests.
        (40, Scaling(max_concurrency=99, max_multiplexing=4, concurrency_buffer_perc=50), 15),
        # Contradictory options are refused earlier; if they get here, the maximum wins.
        (0, Scaling(min_concurrency=5, max_concurrency=2), 2),
    ],
)
def test_target_follows_the_formula(load: int, scaling: Scaling, target: int) -> None:
    assert decide(scaling, seen(queued=load), NOW) == Decision(target, start=target)


def test_requests_in_flight_and_queued_add_up() -> None:
    scaling = Scaling(max_concurrency=9, max_multiplexing=2)
    decision = decide(scaling, seen(busy("a", 2), busy("b", 1), queued=2), NOW)
    assert (decision.target, decision.start) == (3, 1)


def test_starting_runners_count_toward_the_target() -> None:
    scaling = Scaling(max_concurrency=9)
    runners = [starting("a", state="PENDING"), starting("b", state="DOCKER_PULL"), starting("c")]
    assert decide(scaling, seen(*runners, queued=3), NOW).start == 0
    assert decide(scaling, seen(*runners, queued=5), NOW).start == 2


@pytest.mark.parametrize("state", ["DRAINING", "TERMINATING", "TERMINATED", "CRASH_BACKOFF"])
def test_runners_on_their_way_out_are_ignored(state: str) -> None:
    leaving = Runner("a", state, 3, since=0.0)
    assert decide(Scaling(), seen(leaving), NOW) == Decision(0)
    assert decide(Scaling(), seen(leaving, queued=1), NOW).start == 1


# --- scaling_delay ----------------------------------------------------------------------------


def test_a_request_within_scaling_delay_starts_nothing_but_sets_the_alarm() -> None:
    decision = decide(Scaling(scaling_delay=5), seen(next_due_at=NOW + 3), NOW)
    assert decision == Decision(0, wake_at=NOW + 3)


def test_at_the_maximum_a_due_request_wakes_nobody() -> None:
    decision = decide(Scaling(scaling_delay=5), seen(busy("a"), next_due_at=NOW + 3), NOW)
    assert decision == Decision(1)


def test_a_due_time_in_the_past_does_not_spin_the_loop() -> None:
    decision = decide(Scaling(scaling_delay=5), seen(next_due_at=NOW - 3), NOW)
    assert decision.wake_at is not None
    assert NOW < decision.wake_at < NOW + 1


# --- keep_alive -------------------------------------------------------------------------------


def test_scale_down_waits_for_keep_alive() -> None:
    observed = seen(idle("a", ago=4))
    assert decide(Scaling(), observed, NOW) == Decision(0, wake_at=NOW + 6)
    assert decide(Scaling(), observed, NOW + 5.9).stop == ()
    assert decide(Scaling(), observed, NOW + 6) == Decision(0, stop=("a",))


def test_the_alarm_of_keep_alive_is_never_early_by_rounding() -> None:
    scaling = Scaling(keep_alive=0.3)
    observed = seen(Runner("a", "IDLE", 0, 0.0, last_request_at=0.1))
    wake_at = decide(scaling, observed, 0.2).wake_at
    assert wake_at is not None
    assert decide(scaling, observed, wake_at).stop == ("a",)


def test_keep_alive_zero_stops_at_once() -> None:
    assert decide(Scaling(keep_alive=0), seen(idle("a")), NOW).stop == ("a",)


def test_keep_alive_does_not_touch_the_floor() -> None:
    scaling = Scaling(min_concurrency=1, max_concurrency=4)
    assert decide(scaling, seen(idle("a", ago=99)), NOW) == Decision(1)
    assert decide(scaling, seen(idle("a", 99), idle("b", 98)), NOW) == Decision(1, stop=("a",))


def test_the_longest_idle_goes_first_and_ties_go_by_id() -> None:
    scaling = Scaling(min_concurrency=1, max_concurrency=9)
    observed = seen(idle("d", 20), idle("c", 30), idle("b", 30), idle("a", 15))
    assert decide(scaling, observed, NOW).stop == ("b", "c", "d")


def test_only_those_whose_time_has_come_go_and_the_next_sets_the_alarm() -> None:
    observed = seen(idle("a", 11), idle("b", 9), idle("c", 5))
    assert decide(Scaling(max_concurrency=9), observed, NOW) == Decision(
        0, stop=("a",), wake_at=NOW + 1
    )


@pytest.mark.parametrize("keep_alive", [0.0, 10.0, 600.0])
def test_a_new_runner_without_a_request_goes_after_ten_seconds(keep_alive: float) -> None:
    scaling = Scaling(keep_alive=keep_alive)
    assert decide(scaling, seen(unused("a", ago=9)), NOW) == Decision(0, wake_at=NOW + 1)
    assert decide(scaling, seen(unused("a", ago=10)), NOW).stop == ("a",)


def test_a_runner_without_a_request_stays_ten_seconds_after_it_was_asked_for() -> None:
    scaling = Scaling(max_concurrency=9, keep_alive=60)
    observed = seen(idle("a"), unused("b", ago=60), unused("c", ago=60), asked=((3, NOW - 20),))
    assert decide(scaling, observed, NOW) == Decision(0, wake_at=NOW + 10)
    later = replace(observed, asked=asked(asked(observed.asked, 2, NOW), 0, NOW + 4))
    assert later.asked == ((3, NOW), (2, NOW + 4), (0, NOW + 4))
    assert decide(scaling, later, NOW + 9) == Decision(0, wake_at=NOW + 10)
    decision = decide(scaling, later, NOW + 10)
    assert (decision.stop, decision.wake_at) == (("b",), NOW + 14)


def test_what_was_asked_for_long_ago_is_forgotten() -> None:
    noted = asked(asked(asked(((9, NOW - 20),), 5, NOW - 11), 7, NOW - 8), 3, NOW)
    assert noted == ((7, NOW), (3, NOW))


def test_a_buffer_keeps_runners_that_never_had_a_request() -> None:
    scaling = Scaling(max_concurrency=9, concurrency_buffer=2)
    assert decide(scaling, seen(unused("a", 99), unused("b", 99)), NOW) == Decision(2)


# --- who is never stopped, and who first ------------------------------------------------------


def test_busy_runners_are_never_stopped() -> None:
    scaling = Scaling(max_concurrency=1, max_multiplexing=8)
    assert decide(scaling, seen(busy("a"), busy("b"), busy("c")), NOW) == Decision(1)


def test_above_a_lowered_maximum_idle_runners_go_at_once() -> None:
    scaling = Scaling(max_concurrency=1, max_multiplexing=8, keep_alive=600)
    observed = seen(busy("a"), idle("b", ago=1), idle("c", ago=2), unused("d"))
    assert decide(scaling, observed, NOW) == Decision(1, stop=("c", "b", "d"))


def test_above_the_maximum_starting_runners_go_before_idle_ones() -> None:
    scaling = Scaling(max_concurrency=2, keep_alive=600)
    observed = seen(busy("a"), idle("b", ago=99), starting("c"))
    assert decide(scaling, observed, NOW).stop == ("c",)


def test_a_young_start_survives_the_request_that_asked_for_it() -> None:
    scaling = Scaling(max_concurrency=9)
    observed = seen(busy("a"), starting("b", ago=3), starting("c", ago=2))
    assert decide(scaling, observed, NOW) == Decision(1, wake_at=NOW + 7)


def test_a_surplus_start_goes_once_it_is_older_than_keep_alive() -> None:
    observed = seen(busy("a"), starting("b", ago=30))
    assert decide(Scaling(max_concurrency=9), observed, NOW).stop == ("b",)
    patient = Scaling(max_concurrency=9, keep_alive=60)
    assert decide(patient, observed, NOW) == Decision(1, wake_at=NOW + 30)


def test_of_the_starting_runners_the_least_advanced_and_youngest_go_first() -> None:
    runners = [
        starting("setup-old", 90),
        starting("setup-new", 20),
        starting("pull", 80, "DOCKER_PULL"),
        starting("pending-old", 99, "PENDING"),
        starting("pending-new", 30, "PENDING"),
    ]
    order = ("pending-new", "pending-old", "pull", "setup-new", "setup-old")
    for count in range(5):
        scaling = Scaling(min_concurrency=5 - count, max_concurrency=9)
        assert decide(scaling, seen(*runners), NOW).stop == order[:count]


def test_with_nothing_ready_the_last_setup_is_let_finish() -> None:
    """Clients that give up after 5 s would otherwise never see a setup of 30 s come up."""
    scaling = Scaling(max_concurrency=9)
    both = seen(starting("a", ago=50), starting("b", ago=40))
    assert decide(scaling, both, NOW).stop == ("b",)
    assert decide(scaling, seen(starting("a", ago=50)), NOW) == Decision(0)
    stuck = seen(starting("a", ago=50, state="PENDING"))
    assert decide(scaling, stuck, NOW).stop == ("a",)


def test_a_starting_runner_does_not_stand_in_for_a_ready_one() -> None:
    scaling = Scaling(min_concurrency=1, max_concurrency=9, keep_alive=1)
    observed = seen(idle("ready", ago=50), starting("new", ago=2))
    assert decide(scaling, observed, NOW) == Decision(1, wake_at=NOW + 8)
    assert decide(scaling, observed, NOW + 8).stop == ("new",)


# --- unknown load -----------------------------------------------------------------------------


def test_an_unknown_load_stops_nothing() -> None:
    observed = seen(idle("a", 999), starting("b", 999), load_known=False)
    assert decide(Scaling(max_concurrency=9), observed, NOW) == Decision(2)
    assert decide(Scaling(max_concurrency=1), observed, NOW).stop == ()


def test_an_unknown_load_starts_only_up_to_the_minimum() -> None:
    scaling = Scaling(min_concurrency=2, max_concurrency=9, concurrency_buffer=5)
    observed = seen(idle("a", 999), queued=7, load_known=False)
    assert decide(scaling, observed, NOW) == Decision(2, start=1)


# --- crash backoff ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failures", "seconds"),
    [(-1, 0), (0, 0), (1, 30), (2, 60), (19, 570), (20, 600), (21, 600), (10**9, 600)],
)
def test_backoff_grows_by_thirty_seconds_up_to_ten_minutes(failures: int, seconds: float) -> None:
    assert backoff(failures) == seconds


def test_starts_wait_for_the_backoff() -> None:
    observed = seen(queued=1, failures=2, last_failure_at=NOW - 20)
    assert decide(Scaling(), observed, NOW) == Decision(1, wake_at=NOW + 40, blocked_until=NOW + 40)
    assert decide(Scaling(), observed, NOW + 40) == Decision(1, start=1)


def test_the_backoff_holds_the_minimum_too_even_without_data() -> None:
    scaling = Scaling(min_concurrency=1)
    observed = seen(failures=1, last_failure_at=NOW, load_known=False)
    assert decide(scaling, observed, NOW) == Decision(1, wake_at=NOW + 30, blocked_until=NOW + 30)


def test_the_backoff_holds_no_stop_and_is_not_reported_when_nothing_is_missing() -> None:
    observed = seen(idle("a", 11), failures=3, last_failure_at=NOW)
    assert decide(Scaling(), observed, NOW) == Decision(0, stop=("a",))


# --- properties -------------------------------------------------------------------------------

times = st.floats(min_value=0, max_value=2 * NOW, allow_nan=False)
scalings = st.builds(
    Scaling,
    min_concurrency=st.integers(0, 6),
    max_concurrency=st.integers(1, 12),
    max_multiplexing=st.integers(1, 5),
    concurrency_buffer=st.integers(0, 4),
    concurrency_buffer_perc=st.integers(0, 300),
    keep_alive=st.floats(min_value=0, max_value=300, allow_nan=False),
).filter(lambda scaling: scaling.min_concurrency <= scaling.max_concurrency)


@st.composite
def runners(draw: st.DrawFn, id_: str) -> Runner:
    state = draw(
        st.sampled_from(["PENDING", "DOCKER_PULL", "SETUP", "IDLE", "RUNNING", "DRAINING"])
    )
    in_flight = draw(st.integers(1, 5)) if state == "RUNNING" else 0
    last = draw(st.none() | times) if state in {"IDLE", "RUNNING"} else None
    return Runner(id_, state, in_flight, draw(times), last)


def several(count: int) -> st.SearchStrategy[list[Runner]]:
    return st.tuples(*(runners(f"r{number}") for number in range(count))).map(list)


def noted(past: list[tuple[int, float]]) -> Asked:
    """Return what is observed after targets so many seconds ago."""
    before: Asked = ()
    for target, ago in sorted(past, key=lambda pair: -pair[1]):
        before = asked(before, target, NOW - ago)
    return before


targets = st.lists(st.tuples(st.integers(0, 14), st.floats(0, 20)), max_size=4).map(noted)


@st.composite
def observations(draw: st.DrawFn) -> Observed:
    return Observed(
        arranged(draw(st.integers(0, 14).flatmap(several))),
        queued=draw(st.integers(0, 30)),
        next_due_at=draw(st.none() | times),
        failures=draw(st.integers(0, 3)),
        last_failure_at=draw(st.none() | times),
        load_known=draw(st.booleans()),
        asked=draw(targets),
    )


def live(observed: Observed) -> int:
    return len(observed.runners.starting) + observed.runners.ready


def applied(observed: Observed, decision: Decision, now: float) -> Observed:
    starting, unused, used, busy, in_flight = observed.runners
    new = [Starting("PENDING", now, f"new{number}") for number in range(decision.start)]
    kept = [[r for r in kind if r[1] not in decision.stop] for kind in (unused, used)]
    starting = [*(r for r in starting if r.id not in decision.stop), *new]
    return replace(observed, runners=Runners(starting, *kept, busy, in_flight))


@for_all(scalings, observations())
def test_the_target_stays_within_bounds(scaling: Scaling, observed: Observed) -> None:
    target = decide(scaling, observed, NOW).target
    assert scaling.min_concurrency <= target <= scaling.max_concurrency


@for_all(scalings, observations())
def test_starts_never_exceed_the_maximum(scaling: Scaling, observed: Observed) -> None:
    existing = live(observed)
    start = decide(scaling, observed, NOW).start
    assert existing + start <= max(scaling.max_concurrency, existing)


@for_all(scalings, observations())
def test_only_known_runners_without_requests_are_stopped_once(
    scaling: Scaling, observed: Observed
) -> None:
    stop = decide(scaling, observed, NOW).stop
    starting, unused, used, *_ = observed.runners
    free = {r.id for r in starting} | {name for _, name in (*unused, *used)}
    assert set(stop) <= free
    assert len(set(stop)) == len(stop)


@for_all(scalings, observations())
def test_what_is_left_meets_the_target(scaling: Scaling, observed: Observed) -> None:
    decision = decide(scaling, observed, NOW)
    left = live(applied(observed, decision, NOW))
    assert left >= min(decision.target, live(observed))


@for_all(scalings, observations())
def test_no_decision_both_starts_and_stops(scaling: Scaling, observed: Observed) -> None:
    decision = decide(scaling, observed, NOW)
    assert not (decision.start and decision.stop)


@for_all(scalings, observations())
def test_a_decision_carried_out_leaves_nothing_to_do(scaling: Scaling, observed: Observed) -> None:
    decision = decide(scaling, observed, NOW)
    again = decide(scaling, applied(observed, decision, NOW), NOW)
    assert (again.start, again.stop, again.target) == (0, (), decision.target)


@for_all(scalings, observations())
def test_the_need_is_met_unless_the_maximum_or_a_backoff_forbids(
    scaling: Scaling, observed: Observed
) -> None:
    observed = replace(observed, load_known=True)
    decision = decide(scaling, observed, NOW)
    load = observed.queued + observed.runners.in_flight
    capacity = live(applied(observed, decision, NOW)) * scaling.max_multiplexing
    assert (
        capacity >= load
        or decision.target == scaling.max_concurrency
        or decision.blocked_until is not None
    )


@for_all(scalings, observations())
def test_the_alarm_is_in_the_future_and_comes_for_a_blocked_start(
    scaling: Scaling, observed: Observed
) -> None:
    decision = decide(scaling, observed, NOW)
    if decision.wake_at is not None:
        assert decision.wake_at > NOW
    if decision.blocked_until is not None:
        assert decision.start == 0
        assert decision.wake_at is not None
        assert decision.wake_at <= max(decision.blocked_until, NOW + 0.01)


@for_all(scalings, observations(), st.floats(min_value=0, max_value=500))
def test_before_the_alarm_nothing_is_to_be_done(
    scaling: Scaling, observed: Observed, later: float
) -> None:
    decision = decide(scaling, observed, NOW)
    after = applied(observed, decision, NOW)
    then = NOW + later
    if decision.wake_at is None or then < decision.wake_at:
        follow_up = decide(scaling, replace(after, next_due_at=None), then)
        new_may_go = decision.start > 0  # their own alarm is set by the event of their creation
        assert follow_up.start == 0
        assert new_may_go or follow_up.stop == ()


@for_all(scalings, observations())
def test_an_unknown_load_never_scales_down(scaling: Scaling, observed: Observed) -> None:
    decision = decide(scaling, replace(observed, load_known=False), NOW)
    assert decision.stop == ()
    assert live(observed) + decision.start <= max(scaling.min_concurrency, live(observed))


@for_all(scalings, st.integers(0, 14).flatmap(several), observations(), st.randoms())
def test_the_order_in_which_runners_are_listed_does_not_matter(
    scaling: Scaling, listed: list[Runner], observed: Observed, random: Random
) -> None:
    before = decide(scaling, replace(observed, runners=arranged(listed)), NOW)
    random.shuffle(listed)
    assert decide(scaling, replace(observed, runners=arranged(listed)), NOW) == before


def by_the_rules(scaling: Scaling, observed: Observed, target: int) -> tuple[str, ...]:
    """Return who goes of too many: every runner looked at, as the module's text has it."""
    starting, unused, used, *_ = observed.runners
    advance = ["PENDING", "DOCKER_PULL", "SETUP"].index
    starts = sorted(starting, key=lambda r: (advance(r.state), -r.since, r.id))
    if starts and not observed.runners.ready and starts[-1].state == "SETUP":
        starts.pop()
    keep, buffer = scaling.keep_alive, scaling.buffered
    unasked = max(10, keep) if buffer else 10
    ready = sorted([(r, 10, unasked) for r in unused] + [(r, keep, keep) for r in used])
    candidates = [((r.since, r.id), max(10, keep), unasked) for r in starts] + ready
    left, excess = live(observed), live(observed) - scaling.max_concurrency
    spare, stop = observed.runners.ready - target, list[str]()
    for number, (runner, hold, memory) in enumerate(candidates):
        idle = number >= len(starts)
        last = max([at for level, at in observed.asked[:-1] if level >= left], default=-math.inf)
        if observed.asked and observed.asked[-1][0] >= left:
            last = NOW
        until = max(runner[0] + hold, last + memory if buffer or runner not in used else 0)
        if left > target and (spare > 0 or not idle) and (until <= NOW or len(stop) < excess):
            stop.append(runner[1])
            left -= 1
            spare -= idle
    return tuple(stop)


@for_all(scalings, observations())
def test_looking_at_the_first_of_each_kind_finds_who_goes_by_the_rules(
    scaling: Scaling, observed: Observed
) -> None:
    decision = decide(scaling, replace(observed, load_known=True), NOW)
    assert decision.stop == by_the_rules(scaling, observed, decision.target)


def test_busy_runners_are_counted_and_those_on_their_way_out_are_not() -> None:
    found = arranged([busy("a", 2), busy("b"), replace(busy("c"), state="DRAINING"), idle("d")])
    assert (found.busy, found.in_flight, found.ready) == (2, 3, 3)


# --- in virtual time --------------------------------------------------------------------------


@dataclass
class World:
    """An app in virtual time: requests arrive and end, runners take `setup` seconds to start.

    The loop looks only when something happens or an alarm rings, as the controller does, and hands
    waiting requests to the most recently used runner that has room.
    """

    scaling: Scaling
    setup: float = 2.0
    crashing: bool = False
    now: float = 0.0
    runners: dict[str, Runner] = field(default_factory=dict)
    ends: list[tuple[float, str]] = field(default_factory=list)  # of requests, with their runner
    waiting: list[tuple[float, float]] = field(default_factory=list)  # arrival, duration
    failures: int = 0
    last_failure_at: float | None = None
    history: list[tuple[float, str, int]] = field(default_factory=list)  # what was done
    looks: int = 0

    def run(self, arrivals: list[tuple[float, float]], until: float) -> None:
        """Play requests (time, duration) up to a time."""
        arrivals = sorted(arrivals)
        wake_at: float | None = None
        while True:
            times = [time for time, _ in [*arrivals[:1], *self.ends]]
            times += [r.since + self.setup for r in self.runners.values() if r.state == "SETUP"]
            times += [] if wake_at is None else [wake_at]
            if min(times, default=until) >= until:
                self.now = until
                return
            self.now = max(self.now, min(times))
            while arrivals and arrivals[0][0] <= self.now:
                self.waiting.append(arrivals.pop(0))
            self._finish()
            self._ready()
            self._dispatch()
            wake_at = self._look()

    def _finish(self) -> None:
        for end, id_ in [item for item in self.ends if item[0] <= self.now]:
            self.ends.remove((end, id_))
            runner = self.runners[id_]
            left = runner.in_flight - 1
            self.runners[id_] = replace(
                runner, in_flight=left, state="RUNNING" if left else "IDLE", last_request_at=end
            )

    def _ready(self) -> None:
        for runner in list(self.runners.values()):
            if runner.state != "SETUP" or runner.since + self.setup > self.now:
                continue
            if self.crashing:
                del self.runners[runner.id]
                self.failures += 1
                self.last_failure_at = self.now
            else:
                self.failures = 0
                self.runners[runner.id] = replace(runner, state="IDLE", since=self.now)

    def _dispatch(self) -> None:
        while self.waiting:
            room = [
                runner
                for runner in self.runners.values()
                if runner.state != "SETUP" and runner.in_flight < self.scaling.max_multiplexing
            ]
            if not room:
                return
            runner = max(room, key=lambda r: (r.in_flight, r.last_request_at or 0.0, r.id))
            _, duration = self.waiting.pop(0)
            self.ends.append((self.now + duration, runner.id))
            self.runners[runner.id] = replace(
                runner, state="RUNNING", in_flight=runner.in_flight + 1
            )

    def _look(self) -> float | None:
        self.looks += 1
        due = [arrival + self.scaling.scaling_delay for arrival, _ in self.waiting]
        observed = Observed(
            arranged(self.runners.values()),
            queued=sum(time <= self.now for time in due),
            next_due_at=min([time for time in due if time > self.now], default=None),
            failures=self.failures,
            last_failure_at=self.last_failure_at,
        )
        decision = decide(self.scaling, observed, self.now)
        for _ in range(decision.start):
            id_ = f"r{len(self.history)}"
            self.runners[id_] = Runner(id_, "SETUP", 0, self.now)
            self.history.append((self.now, "start", len(self.runners)))
        for id_ in decision.stop:
            del self.runners[id_]
            self.history.append((self.now, "stop", len(self.runners)))
        return decision.wake_at

    def times(self, verb: str) -> list[float]:
        return [time for time, done, _ in self.history if done == verb]


def steady(rate: float, duration: float, until: float) -> list[tuple[float, float]]:
    return [(number / rate, duration) for number in range(int(rate * until))]


def test_a_burst_goes_up_and_back_to_zero() -> None:
    world = World(Scaling(max_concurrency=4, keep_alive=10), setup=2)
    world.run([(1.0, 3.0)] * 8, until=100)
    assert world.times("start") == [1.0] * 4
    assert world.times("stop") == [19.0] * 4  # 1 + 2 of setup + two rounds of 3 + keep_alive
    assert world.runners == {}


def test_a_steady_load_settles() -> None:
    world = World(Scaling(max_concurrency=20, keep_alive=10), setup=3)
    world.run(steady(rate=2, duration=2.3, until=600), until=600)
    # What was started for the backlog of the slow start goes; then nothing moves any more.
    assert max(time for time, _, _ in world.history) < 60
    assert len(world.runners) == 5
    assert world.waiting == []


def test_a_pause_shorter_than_keep_alive_stops_nothing() -> None:
    bursts = [(start + 0.5 * number, 1.0) for start in range(0, 900, 9) for number in range(4)]
    world = World(Scaling(max_concurrency=2, keep_alive=10), setup=0.1)
    world.run(bursts, until=900)
    assert world.times("stop") == []


@pytest.mark.parametrize(("delay", "extra"), [(0.0, True), (2.0, False)])
def test_scaling_delay_lets_short_peaks_pass(delay: float, extra: bool) -> None:
    scaling = Scaling(min_concurrency=1, max_concurrency=5, keep_alive=5, scaling_delay=delay)
    peaks = [(10.0 * number, 0.5) for number in range(1, 20) for _ in range(3)]
    world = World(scaling)
    world.run([(0.0, 0.1), *peaks], until=200)
    assert (len(world.times("start")) > 1) is extra


def test_a_request_to_zero_runners_waits_for_scaling_delay_and_no_longer() -> None:
    world = World(Scaling(scaling_delay=4.0))
    world.run([(1.0, 1.0)], until=60)
    assert world.times("start") == [5.0]
    assert world.waiting == []


def test_a_crashing_app_is_tried_again_ever_more_rarely() -> None:
    world = World(Scaling(), setup=1, crashing=True)
    world.run([(0.0, 1.0)], until=1000)
    starts = world.times("start")
    assert starts[:4] == [0.0, 31.0, 92.0, 183.0]
    assert len(starts) == 8


def test_without_traffic_nothing_ever_climbs() -> None:
    world = World(Scaling(max_concurrency=20, concurrency_buffer_perc=300))
    world.run([(0.0, 1.0)], until=100_000)
    after = [time for time, _, _ in world.history if time > 30]
    assert after == []
    assert world.looks < 30


@for_all(
    scalings,
    st.lists(st.tuples(st.floats(0, 120), st.floats(0.01, 20)), max_size=25),
    st.floats(0.05, 40),
    st.sampled_from([0.0, 1.5]),
)
def test_any_traffic_is_served_and_then_only_the_floor_stays(
    scaling: Scaling, arrivals: list[tuple[float, float]], setup: float, delay: float
) -> None:
    world = World(replace(scaling, scaling_delay=delay), setup=setup)
    world.run([(0.0, 0.01), *arrivals], until=5000)
    floor = decide(scaling, Observed(), world.now).target
    assert world.waiting == []
    assert len(world.runners) == floor
    assert world.looks <= 20 * (len(arrivals) + 1) + 10 * scaling.max_concurrency  # no spinning
