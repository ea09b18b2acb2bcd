"""Health checks: what follows from the option, what counts, and when a runner is asked."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from inside import ask, close_gateway, deployed, open_gateway, post, revision, states, until

from fal_notebook.gateway import health
from fal_notebook.gateway.gateway import Gateway
from fal_notebook.gateway.health import check_of, count
from fal_notebook.gateway.upstream import UpstreamError
from fal_notebook.option_types import HealthCheck

STAY = "def f(): return 1"
CHECK = {"path": "/health", "start_period_seconds": 0, "timeout_seconds": 1}


def checked(kind: str, startup_timeout: int | None = None, **values: Any) -> HealthCheck:
    one = revision()
    one.manifest = {"kind": kind}
    check = HealthCheck(**{"path": "/x", **values}).model_dump(mode="json")
    one.options = {"health_check": check, "startup_timeout": startup_timeout}
    found = check_of(one)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("kind", "given", "method"),
    [
        ("app", {}, "POST"),
        ("sdk", {}, "POST"),
        ("app", {"path": "/health"}, "GET"),
        ("app", {"method": "GET"}, "GET"),
        ("function", {}, "GET"),
        ("server", {}, "GET"),
        ("image", {"method": "POST"}, "POST"),
    ],
)
def test_an_endpoint_is_posted_to_and_all_else_is_got(
    kind: str, given: dict[str, Any], method: str
) -> None:
    assert checked(kind, **given).method == method


@pytest.mark.parametrize(
    ("startup", "given", "period"),
    [(None, {}, 30), (10, {}, 30), (90, {}, 90), (90, {"start_period_seconds": 100}, 100)],
)
def test_the_start_period_is_no_shorter_than_a_start_may_take(
    startup: int | None, given: dict[str, Any], period: int
) -> None:
    assert checked("app", startup, **given).start_period_seconds == period


def test_without_the_option_nothing_is_asked() -> None:
    one = revision()
    assert check_of(one) is None  # of a revision that was stored before there was the option
    one.options = {"health_check": None}
    assert check_of(one) is None


@pytest.mark.parametrize(
    ("before", "wrong", "age", "after"),
    [(0, "is dead", 31, 1), (2, "is dead", 31, 3), (2, "", 31, 0), (0, "is dead", 29, 0)],
)
def test_failures_in_a_row_count_after_the_start_period(
    before: int, wrong: str, age: float, after: int
) -> None:
    assert count(before, wrong, age, checked("app")) == after


@pytest.fixture
async def gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Gateway]:
    monkeypatch.setattr(health, "PERIOD", 0.05)
    gateway = open_gateway(tmp_path)
    yield gateway
    await close_gateway(gateway)


@pytest.mark.parametrize("threshold", [1, 3])
async def test_a_stuck_runner_is_killed_after_so_many_failures_in_a_row(
    gateway: Gateway, threshold: int
) -> None:
    check = {**CHECK, "failure_threshold": threshold}
    fleet = await deployed(gateway, STAY, min_concurrency=1, health_check=check)
    (runner,) = fleet.runners.values()
    os.kill(runner.row.process["pid"], signal.SIGSTOP)
    await runner.ended.wait()
    told = [state for state, _ in states(gateway, runner.row.id)]
    assert told == ["PENDING", "SETUP", "IDLE", "TERMINATING", "TERMINATED"]
    times = f", {threshold} times in a row" if threshold > 1 else ""
    assert runner.row.cause == f"its health check GET /health had no answer in {_ONE}{times}"
    other = await until(lambda: fleet.serving())
    assert other is not runner


_ONE = "timeout_seconds=1"


async def test_a_runner_that_gets_stuck_as_it_drains_is_not_waited_for(gateway: Gateway) -> None:
    check = {**CHECK, "failure_threshold": 1}
    source = "import time\ndef f(): time.sleep(1000)"
    options = {"termination_grace_period_seconds": 1000, "health_check": check}
    fleet = await deployed(gateway, source, **options)
    runner = await ask(fleet)
    lost = asyncio.ensure_future(post(runner))
    await asyncio.sleep(0.05)
    gateway.lifecycle.stop(runner, "scaled down")
    os.kill(runner.row.process["pid"], signal.SIGSTOP)
    with pytest.raises(UpstreamError):
        await lost
    await runner.ended.wait()
    assert "its health check GET /health had no answer" in runner.row.cause
    fleet.release(runner)


async def test_a_runner_that_is_well_stays(gateway: Gateway) -> None:
    check = {**CHECK, "failure_threshold": 1}
    fleet = await deployed(gateway, STAY, min_concurrency=1, health_check=check)
    (runner,) = fleet.runners.values()
    await asyncio.sleep(0.5)  # ten checks
    assert list(fleet.runners.values()) == [runner]
    assert (runner.in_flight, runner.last_request_at) == (0, None)  # a check is no request


async def test_failures_within_the_start_period_end_nothing(gateway: Gateway) -> None:
    check = {**CHECK, "failure_threshold": 1, "start_period_seconds": 1000}
    fleet = await deployed(gateway, STAY, min_concurrency=1, health_check=check)
    (runner,) = fleet.runners.values()
    os.kill(runner.row.process["pid"], signal.SIGSTOP)
    await asyncio.sleep(1.3)  # one check has failed
    assert runner.state == "IDLE"
    os.kill(runner.row.process["pid"], signal.SIGCONT)


async def test_a_runner_that_got_stuck_without_a_gateway_is_found_when_it_is_adopted(
    tmp_path: Path,
) -> None:
    first = open_gateway(tmp_path)
    check = {**CHECK, "failure_threshold": 1}
    source = "import os, threading, signal\ndef f(): return 1"
    fleet = await deployed(first, source, min_concurrency=1, health_check=check)
    (runner,) = fleet.runners.values()
    await first.close()
    second = open_gateway(tmp_path)  # its regular checks are 15 s apart
    try:
        (adopted,) = second.fleets["tester", "app"].runners.values()
        assert adopted.row.id == runner.row.id
        await until(lambda: adopted.state == "IDLE")
        os.kill(adopted.row.process["pid"], signal.SIGSTOP)
        adopted.check_now.set()
        await adopted.ended.wait()
        assert "its health check GET /health had no answer" in adopted.row.cause
    finally:
        await close_gateway(second)
