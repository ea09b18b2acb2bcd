"""Runners follow the load: at once at zero, never too many, back to nothing; then no timers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from inside import ask, close_gateway, deployed, open_gateway, post, rows, until

from fal_notebook.gateway import autoscaler
from fal_notebook.gateway import clock as clock_module
from fal_notebook.gateway.fleet import Fleet
from fal_notebook.gateway.gateway import Gateway
from fal_notebook.gateway.operations import apps

STAY = "def f(): return 1"
SLOW = "import time\ndef f(): time.sleep(0.05); return 1"


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    gateway = open_gateway(tmp_path)
    yield gateway
    await close_gateway(gateway)


class Clock:
    """The clock of decisions, moved by hand."""

    def __init__(self) -> None:
        self._ahead = 0.0

    def now(self) -> float:
        return time.monotonic() + self._ahead

    async def move(self, seconds: float, fleet: Fleet, gateway: Gateway) -> None:
        """Move on and let the controller decide then."""
        self._ahead += seconds
        gateway.controller.poke(fleet)
        await decided()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    moved = Clock()
    monkeypatch.setattr(clock_module, "now", moved.now)
    return moved


async def decided() -> None:
    """Let the controller do what is due now."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)


async def at_zero(gateway: Gateway, source: str = STAY, **options: Any) -> Fleet:
    fleet = await deployed(gateway, source, **options)
    for runner in list(fleet.runners.values()):
        gateway.lifecycle.stop(runner, "test")
        await runner.ended.wait()
    return fleet


async def request(fleet: Fleet) -> bytes:
    runner = await ask(fleet)
    try:
        return (await post(runner))[1]
    finally:
        fleet.release(runner)


async def test_a_request_at_zero_starts_a_runner_in_the_next_turn_of_the_loop(
    gateway: Gateway,
) -> None:
    fleet = await at_zero(gateway)
    waiting = asyncio.ensure_future(request(fleet))
    await decided()
    assert len(fleet.runners) == 1
    assert await waiting == b"1"


async def test_a_burst_never_exceeds_max_concurrency_and_all_are_served(gateway: Gateway) -> None:
    fleet = await at_zero(gateway, SLOW, max_concurrency=3)
    most = 0

    def watch() -> None:
        nonlocal most
        most = max(most, len(fleet.active()))

    changed = fleet.changed

    def seen() -> None:
        watch()
        changed()

    fleet.changed = seen  # type: ignore[method-assign]
    answers = await asyncio.gather(*(request(fleet) for _ in range(50)))
    assert set(answers) == {b"1"}
    assert most == 3


async def test_multiplexing_needs_fewer_runners(gateway: Gateway) -> None:
    fleet = await at_zero(gateway, SLOW, max_concurrency=9, max_multiplexing=10)
    await asyncio.gather(*(request(fleet) for _ in range(20)))
    assert len(rows(gateway)) == 1 + 2


async def test_scaling_delay_lets_a_short_wait_pass_without_a_new_runner(gateway: Gateway) -> None:
    fleet = await deployed(gateway, SLOW, max_concurrency=5, scaling_delay=1)
    await asyncio.gather(*(request(fleet) for _ in range(4)))
    assert len(rows(gateway)) == 1


async def test_scaling_delay_holds_for_the_first_runner_too(gateway: Gateway, clock: Clock) -> None:
    fleet = await at_zero(gateway, scaling_delay=100)
    waiting = asyncio.ensure_future(request(fleet))
    await decided()
    assert fleet.runners == {}
    assert gateway.controller._due[fleet][0] == pytest.approx(clock.now() + 100, abs=20)
    await clock.move(60, fleet, gateway)
    assert fleet.runners == {}
    await clock.move(41, fleet, gateway)
    assert len(fleet.runners) == 1
    assert await waiting == b"1"


async def test_minimum_and_buffer_are_kept_warm(gateway: Gateway) -> None:
    fleet = await deployed(gateway, STAY, max_concurrency=4, min_concurrency=1)
    apps.scale(gateway, "tester", "app", {"concurrency_buffer": 2})
    await until(lambda: len([r for r in fleet.active() if r.state == "IDLE"]) == 2)
    busy = await ask(fleet)
    await until(lambda: len(fleet.active()) == 3)
    fleet.release(busy)
    apps.scale(gateway, "tester", "app", {"min_concurrency": 4})
    await until(lambda: len(fleet.active()) == 4)


async def test_an_app_without_load_goes_to_zero_and_has_no_timer_then(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autoscaler, "UNUSED_KEEP_ALIVE", 0.3)
    fleet = await deployed(gateway, STAY)
    assert len(fleet.active()) == 1
    (runner,) = fleet.runners.values()
    await until(lambda: fleet.runners == {})
    assert runner.row.cause == "scaled down"
    assert (runner.row.ended_at or 0) - (runner.row.ready_at or 0) >= 0.3
    await decided()
    assert fleet not in gateway.controller._due


@pytest.mark.parametrize("jump", [3600.0, -3600.0])
async def test_a_jump_of_the_machines_clock_changes_nothing(
    gateway: Gateway, clock: Clock, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    fleet = await deployed(gateway, STAY, keep_alive=100)
    await request(fleet)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + jump)
    await clock.move(60, fleet, gateway)
    assert len(fleet.active()) == 1
    await clock.move(41, fleet, gateway)
    await until(lambda: fleet.active() == [])


async def test_keep_alive_counts_from_the_last_request(gateway: Gateway, clock: Clock) -> None:
    fleet = await deployed(gateway, STAY, keep_alive=100)
    (runner,) = fleet.runners.values()
    for _ in range(3):
        await request(fleet)
        await clock.move(60, fleet, gateway)
        assert fleet.serving() is runner
    await clock.move(41, fleet, gateway)
    assert (runner.state, runner.row.cause) == ("DRAINING", "scaled down")
    await until(lambda: fleet.runners == {})
    assert len(rows(gateway)) == 1


async def test_keep_alive_of_zero_ends_the_runner_with_its_last_request(gateway: Gateway) -> None:
    fleet = await deployed(gateway, STAY, keep_alive=0)
    began = time.monotonic()
    await request(fleet)
    await until(lambda: fleet.runners == {})
    assert time.monotonic() - began < 3


async def test_a_busy_app_is_not_decided_for_at_every_request(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = await deployed(gateway, STAY, keep_alive=100, max_concurrency=1)
    decisions: list[float] = []
    decide = autoscaler.decide

    def counted(*arguments: Any) -> Any:
        decisions.append(time.time())
        return decide(*arguments)

    monkeypatch.setattr(autoscaler, "decide", counted)
    for _ in range(50):
        await request(fleet)
    assert len(decisions) <= 2


async def test_waiters_are_served_in_the_order_they_came(gateway: Gateway) -> None:
    fleet = await at_zero(gateway, max_concurrency=1)
    order: list[int] = []

    async def numbered(number: int) -> None:
        await request(fleet)
        order.append(number)

    tasks = [asyncio.ensure_future(numbered(number)) for number in range(10)]
    await asyncio.gather(*tasks)
    assert order == list(range(10))


async def test_a_waiter_that_leaves_at_zero_does_not_leave_a_runner_for_ever(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autoscaler, "UNUSED_KEEP_ALIVE", 0.2)
    fleet = await at_zero(gateway, keep_alive=0)
    waiter = fleet.enqueue()
    await decided()
    fleet.leave(waiter)
    await until(lambda: fleet.runners == {} and len(rows(gateway)) == 2)


async def test_a_closed_controller_decides_no_more(gateway: Gateway) -> None:
    fleet = await at_zero(gateway)
    gateway.controller.close()
    fleet.enqueue()
    await decided()
    assert fleet.runners == {}
