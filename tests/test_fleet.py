"""Slots and waiters of one app, on a real event loop: nobody gets too many, nobody is forgotten."""

from __future__ import annotations

import time
from typing import Any

import pytest
from inside import add_runner, fleet_of, until

from fal_notebook.gateway import autoscaler, clock
from fal_notebook.gateway.fleet import Sample, SchedulingError


async def test_a_runner_never_gets_more_than_max_multiplexing() -> None:
    fleet = fleet_of(2, multiplexing=3)
    taken = [fleet.take() for _ in range(6)]
    assert all(taken)
    assert fleet.take() is None
    assert [runner.in_flight for runner in fleet.runners.values()] == [3, 3]


async def test_the_least_loaded_runner_is_taken() -> None:
    fleet = fleet_of(2, multiplexing=3)
    assert [fleet.take().row.id for _ in range(4)] == ["r0", "r1", "r0", "r1"]  # type: ignore[union-attr]


async def test_a_runner_with_the_hint_comes_first_and_the_least_loaded_of_several() -> None:
    fleet = fleet_of(3, multiplexing=2)
    for name in ("r1", "r2"):
        fleet.runners[name].hints = frozenset({b"sdxl", b"flux"})
    taken = [fleet.take(b"flux").row.id for _ in range(5)]  # type: ignore[union-attr]
    assert taken == ["r1", "r2", "r1", "r2", "r0"]
    assert fleet.take(b"flux").row.id == "r0"  # type: ignore[union-attr]


async def test_a_hint_that_nobody_has_is_no_hint() -> None:
    fleet = fleet_of(2)
    assert [fleet.take(b"none").row.id for _ in range(2)] == ["r0", "r1"]  # type: ignore[union-attr]


async def test_hints_hold_for_who_waits_and_are_forgotten_with_who_leaves() -> None:
    given: list[tuple[str, int]] = []
    fleet = fleet_of(0)
    fleet._run_queued = lambda _, runner, number: given.append((runner.row.id, number))
    waiter = fleet.enqueue(b"flux")
    fleet.queue(1, False, b"sdxl")
    fleet.queue(2, False, b"sdxl")
    fleet.unqueue(2)
    for name, hint in (("r0", b""), ("r1", b"sdxl"), ("r2", b"flux")):
        add_runner(fleet, name).hints = frozenset({hint})
    fleet.grant()
    assert waiter.granted.result().row.id == "r2"
    assert given == [("r1", 1)]
    assert fleet.waiting._hints == {}


@pytest.mark.parametrize(
    ("state", "of"), [("SETUP", "v1"), ("DRAINING", "v1"), ("TERMINATING", "v1"), ("IDLE", "v0")]
)
async def test_only_ready_runners_of_the_active_revision_serve(state: str, of: str) -> None:
    fleet = fleet_of(0)
    add_runner(fleet, "r", state, of)
    assert fleet.take() is None


async def test_who_waits_is_served_in_order_and_nobody_overtakes() -> None:
    fleet = fleet_of(1)
    runner = fleet.take()
    assert runner is not None
    waiters = [fleet.enqueue() for _ in range(3)]
    for waiter in waiters:
        fleet.release(runner)
        assert [w.granted.done() for w in waiters] == [
            w in waiters[: waiters.index(waiter) + 1] for w in waiters
        ]
        assert fleet.take() is None
        assert runner.in_flight == 1


async def test_a_new_runner_serves_several_waiters_at_once() -> None:
    fleet = fleet_of(0, multiplexing=2)
    waiters = [fleet.enqueue() for _ in range(3)]
    runner = add_runner(fleet, "r")
    fleet.grant()
    assert [waiter.granted.done() for waiter in waiters] == [True, True, False]
    assert runner.in_flight == 2


async def test_who_leaves_the_line_is_not_served() -> None:
    fleet = fleet_of(1)
    runner = fleet.take()
    assert runner is not None
    gone, stays = fleet.enqueue(), fleet.enqueue()
    fleet.leave(gone)
    fleet.release(runner)
    assert stays.granted.result() is runner
    assert fleet.sample().queued == 0


async def test_a_slot_granted_to_someone_who_leaves_is_given_on() -> None:
    fleet = fleet_of(1)
    waiter = fleet.enqueue()
    assert waiter.granted.done()
    other = fleet.enqueue()
    fleet.leave(waiter)
    assert other.granted.result().in_flight == 1
    fleet.leave(other)
    assert fleet.sample()[1:] == (1, 0, 0)  # runners, in flight, queued


async def test_a_cancelled_waiter_is_passed_over() -> None:
    fleet = fleet_of(1)
    runner = fleet.take()
    assert runner is not None
    cancelled, stays = fleet.enqueue(), fleet.enqueue()
    cancelled.granted.cancel()
    fleet.release(runner)
    assert stays.granted.result() is runner
    assert runner.in_flight == 1


async def test_refusing_reaches_every_waiter_and_leaves_nothing() -> None:
    fleet = fleet_of(0)
    waiters = [fleet.enqueue() for _ in range(3)]
    waiters[0].granted.cancel()
    fleet.refuse(SchedulingError(503, "k", "no"))
    for waiter in waiters[1:]:
        with pytest.raises(SchedulingError, match="no"):
            await waiter.granted
        fleet.leave(waiter)
    assert fleet.sample().queued == 0


async def test_keep_alive_counts_from_the_last_request() -> None:
    fleet = fleet_of(1)
    runner = fleet.take()
    assert runner is not None
    before = clock.now()
    fleet.release(runner)
    ((since, _),) = fleet.observe(clock.now()).runners.used
    assert since >= before


async def test_scaling_delay_is_counted_per_waiter() -> None:
    fleet = fleet_of(0)
    fleet.scaling = autoscaler.Scaling(max_concurrency=10, scaling_delay=5.0)
    first = fleet.enqueue()
    now = first.arrived
    assert fleet.observe(now).queued == 0
    assert fleet.observe(now).next_due_at == now + 5
    assert fleet.observe(now + 5).queued == 1
    assert fleet.observe(now + 5).next_due_at is None


async def test_runners_that_fail_together_are_one_failure_and_a_later_one_another() -> None:
    fleet = fleet_of(0)
    began = clock.now()
    for _ in range(3):
        fleet.failed("no", began - 1)
    assert fleet.failures == 1
    fleet.failed("no", clock.now() + 1)
    assert fleet.failures == 2


async def test_a_failed_start_does_not_refuse_who_waits_for_a_busy_runner() -> None:
    fleet = fleet_of(1)
    runner = fleet.take()
    assert runner is not None
    waiter = fleet.enqueue()
    fleet.failed("no", clock.now())
    assert not waiter.granted.done()
    fleet.release(runner)
    assert waiter.granted.result() is runner


async def test_the_controller_hears_of_need_and_of_idleness_only() -> None:
    heard: list[str] = []
    fleet = fleet_of(
        1, 2, on_need=lambda f: heard.append("need"), on_idle=lambda f: heard.append("idle")
    )
    heard.clear()
    first, second = fleet.take(), fleet.take()
    assert first is not None
    assert second is not None
    fleet.release(first)
    assert heard == []
    fleet.release(second)
    fleet.enqueue()
    assert heard == ["idle", "need"]


async def test_an_idle_fleet_has_no_timer_after_its_last_sample() -> None:
    seen: list[dict[str, Any]] = []
    fleet = fleet_of(1)
    fleet.on_sample = seen.append
    runner = fleet.take()
    assert runner is not None
    for _ in range(5):
        fleet.changed()
    await until(lambda: seen)
    assert len(seen) == len(fleet.samples) == 1
    assert seen[0]["in_flight"] == 1
    assert fleet._sampling is None


async def test_samples_older_than_ten_minutes_go_however_few_there_are() -> None:
    fleet = fleet_of(1)
    now = time.time()
    fleet.samples += [Sample(now - 601, 1, 0, 0), Sample(now - 500, 1, 0, 0)]
    fleet.changed()
    await until(lambda: fleet.samples[-1].at >= now)
    assert [round(now - sample.at) for sample in fleet.samples] == [500, 0]
