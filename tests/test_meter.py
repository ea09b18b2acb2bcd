"""What is billed of a runner: which states, GPUs, pauses between requests, clocks that jump."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fal_notebook.gateway.billing import day_of, unseen_seconds
from fal_notebook.gateway.meter import BILLED, Meter, billed
from fal_notebook.gateway.operations.cost import money
from fal_notebook.gateway.transitions import FOLLOWS


def test_each_state_is_billed_as_fal_does() -> None:
    free = {"PENDING", "DOCKER_PULL", "CRASH_BACKOFF", "TERMINATED", ""}
    assert set(FOLLOWS) - free == set(BILLED)
    assert {billed(state, 10) for state in BILLED} == {10}
    assert {billed(state, 10) for state in free} == {0}


@pytest.mark.parametrize(("gpus", "seconds"), [(0, 10), (1, 10), (4, 40)])
def test_each_gpu_is_billed(gpus: int, seconds: float) -> None:
    assert billed("IDLE", 10, gpus) == seconds


def lived(*states: tuple[str, float], gpus: int = 0) -> Meter:
    meter = Meter(gpus)
    for state, at in states:
        meter.enter(state, at)
    return meter


def test_a_life_is_billed_from_the_start_of_its_process_to_its_end() -> None:
    meter = lived(
        *(("PENDING", 0), ("DOCKER_PULL", 5), ("SETUP", 25), ("IDLE", 32)),
        *(("DRAINING", 92), ("TERMINATING", 94), ("CRASH_BACKOFF", 95), ("TERMINATED", 125)),
        gpus=2,
    )
    assert meter.take(200) == {"SETUP": 14, "IDLE": 120, "DRAINING": 4, "TERMINATING": 2}
    assert meter.take(300) == {}


def test_a_request_is_running_from_its_begin_to_its_end() -> None:
    meter = lived(("IDLE", 0))
    meter.look(50, 50.1, 1, None)  # it began at 50
    meter.look(80, 80.1, 0, 80)
    assert meter.take(90) == pytest.approx({"IDLE": 60, "RUNNING": 30})


def test_a_request_within_one_look_is_running_too() -> None:
    meter = lived(("IDLE", 0))
    meter.look(50, 50.1, 0, 50.04)
    assert meter.take(60) == pytest.approx({"IDLE": 59.96, "RUNNING": 0.04})


def test_requests_of_before_the_last_look_do_not_count_again() -> None:
    meter = lived(("IDLE", 0))
    meter.look(50, 50.1, 0, 50.04)
    meter.take(55)
    meter.look(70, 70.1, 0, 50.04)  # another runner of the app got a request
    assert meter.take(80) == pytest.approx({"IDLE": 25})


def test_a_runner_that_works_is_running_while_nothing_is_looked_at() -> None:
    meter = lived(("IDLE", 0))
    meter.look(0, 0.1, 1, None)
    assert meter.take(3600) == pytest.approx({"RUNNING": 3600})
    meter.enter("DRAINING", 3601)
    assert meter.take(3605) == pytest.approx({"RUNNING": 1, "DRAINING": 4})


def test_a_look_at_one_that_does_not_serve_changes_nothing() -> None:
    meter = lived(("DRAINING", 0))
    meter.look(1, 1.1, 1, 0.5)
    assert meter.take(2) == {"DRAINING": 2}


_EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["enter IDLE", "enter DRAINING", "look", "take"]),
        st.floats(0, 10),  # what passes until then
        st.integers(0, 2),
        st.one_of(st.none(), st.floats(-1e9, 1e9)),  # a last request may be of any time
    )
)


@given(_EVENTS)
def test_every_second_is_billed_once_whatever_is_said(events: list[tuple]) -> None:
    meter, now, total = lived(("SETUP", 0.0)), 0.0, 0.0
    for what, passes, in_flight, last in events:
        now += passes
        if what.startswith("enter"):
            meter.enter(what.partition(" ")[2], now)
        elif what == "look":
            meter.look(now - 0.1, now, in_flight, last)
        else:
            total += sum(meter.take(now).values())
    assert total + sum(meter.take(now).values()) == pytest.approx(now)


@given(st.lists(st.floats(-1e9, 1e9), max_size=5))
def test_a_clock_that_goes_back_bills_nothing(times: list[float]) -> None:
    meter = lived(("IDLE", 1e9))
    for at in times:
        meter.enter("IDLE", at)
        meter.look(at, at, 1, at)
    assert meter.take(1e9) == {}


@pytest.mark.parametrize(
    ("reading", "written", "now", "created_at", "unseen"),
    [
        (500, 480, 2000, 1000, 20),  # a gateway was away for 20 s
        (500, 100, 2000, 1990, 10),  # the runner is younger than what was written
        (500, 480, 999_999, 1000, 20),  # the clock was set forward
        (500, 480, 0, 1000, 0),  # and back
        (5, 9000, 2000, 1000, 0),  # the machine was started anew
    ],
)
def test_what_nobody_saw_is_no_longer_than_it_can_have_been(
    reading: float, written: float, now: float, created_at: float, unseen: float
) -> None:
    assert unseen_seconds(reading, written, now, created_at) == unseen


def test_money_is_by_the_hour_and_never_invented() -> None:
    assert money(1800, 2.0) == 1.0
    assert money(1800, 0.0) == 0.0
    assert money(1800, None) is None


def test_days_are_those_of_utc() -> None:
    assert day_of(0) == "1970-01-01"
    assert day_of(86399.9) == "1970-01-01"
    assert day_of(86400) == "1970-01-02"
