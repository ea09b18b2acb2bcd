"""Each runner's life: states with causes, failures that are named, graceful ends, adoption."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from inside import (
    DeployFailed,
    ask,
    close_gateway,
    deployed,
    open_gateway,
    post,
    rows,
    states,
    until,
)

from fal_notebook.gateway import autoscaler
from fal_notebook.gateway import states as states_of_runners
from fal_notebook.gateway.fleet import SchedulingError
from fal_notebook.gateway.gateway import Gateway
from fal_notebook.gateway.operations import apps
from fal_notebook.gateway.operations.logs import log_tail
from fal_notebook.gateway.transitions import FOLLOWS
from fal_notebook.gateway.upstream import UpstreamError

STAY = "def f(): return 1"
SLOW = "import time\ndef f(): time.sleep(0.4); return 1"


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    gateway = open_gateway(tmp_path)
    yield gateway
    living = [row.process for row in rows(gateway, "state != 'TERMINATED'")]
    lives = all_states(gateway)
    await close_gateway(gateway)
    for life in lives.values():
        assert all(
            after in FOLLOWS[before] for before, after in zip(["", *life], life, strict=False)
        )
    assert not any(gateway.targets.local.alive(process) for process in living)


def all_states(gateway: Gateway) -> dict[str, list[str]]:
    lives = dict[str, list[str]]()
    for event in gateway.store.events(0):
        if event.kind == "runner":
            lives.setdefault(event.data["runner"], []).append(event.data["state"])
    return lives


async def test_every_state_is_recorded_with_its_cause(gateway: Gateway) -> None:
    fleet = await deployed(gateway, STAY)
    (runner,) = fleet.runners.values()
    gateway.lifecycle.stop(runner, "scaled down")
    await runner.ended.wait()
    assert states(gateway, runner.row.id) == [
        ("PENDING", "it proves its revision"),
        ("SETUP", "its process was started"),
        ("IDLE", "it is ready"),
        ("DRAINING", "scaled down"),
        ("TERMINATING", "scaled down"),
        ("TERMINATED", "scaled down"),
    ]
    (row,) = rows(gateway)
    assert row.ready_at is not None
    assert row.ended_at is not None
    assert fleet.runners == {}
    assert not os.path.exists(row.address.removeprefix("unix:"))
    assert not (gateway.state / "runners" / row.id).exists()


async def test_a_runner_is_running_while_it_has_a_request(gateway: Gateway) -> None:
    fleet = await deployed(gateway, STAY)
    runner = await ask(fleet)
    assert (runner.state, runner.row.state) == ("RUNNING", "IDLE")
    fleet.release(runner)
    assert runner.state == "IDLE"


# --- starts that fail ----------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("setup", "named"),
    [
        ("raise ValueError('no model')", "ValueError: no model"),
        ("raise SystemExit(4)", "SystemExit: 4"),
        ("import os; os._exit(3)", r"ended while it was starting \(exit status 3\)"),
        ("import ctypes; ctypes.string_at(0)", r"ended while it was starting \(SIGSEGV\)"),
    ],
)
async def test_a_setup_that_fails_fails_the_deploy_and_says_why(
    gateway: Gateway, setup: str, named: str
) -> None:
    with pytest.raises(DeployFailed, match=named):
        await deployed(gateway, f"def setup():\n    {setup}\ndef f(): pass")
    (row,) = await until(lambda: rows(gateway, "state = 'TERMINATED'"))
    log = log_tail(gateway, row, 50)
    assert any("in setup" in line for line in log) or "exit" in named


HANGS = {
    "sync": "def setup():\n    time.sleep(1000)",
    "async": "async def setup():\n    await asyncio.sleep(1000)",
    "busy": "def setup():\n    while True: pass",
    "holds the GIL": "def setup():\n    import ctypes; ctypes.PyDLL(None).sleep(1000)",
    "on the loop": "async def setup():\n    time.sleep(1000)",
    "ignores SIGTERM": "async def setup():\n    import signal\n"
    "    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n    time.sleep(1000)",
    "while it is loaded": "class Slow:\n    def __reduce__(self): return time.sleep, (1000,)\n"
    "slow = Slow()\ndef setup(): return slow",
}


@pytest.mark.parametrize("hang", HANGS)
async def test_a_start_that_hangs_ends_at_startup_timeout(gateway: Gateway, hang: str) -> None:
    source = f"import asyncio, time\n{HANGS[hang]}\ndef f(*state): pass"
    with pytest.raises(DeployFailed, match="setup took longer than startup_timeout=1 s"):
        await deployed(gateway, source, startup_timeout=1)
    (row,) = await until(lambda: rows(gateway, "state = 'TERMINATED'"))
    assert "startup_timeout=1" in row.cause
    assert not gateway.targets.local.alive(row.process)


async def test_a_failed_start_leaves_at_once_and_nothing_behind(gateway: Gateway) -> None:
    began = time.monotonic()
    with pytest.raises(DeployFailed):
        await deployed(gateway, "def setup(): raise ValueError\ndef f(): pass")
    await until(lambda: rows(gateway, "state = 'TERMINATED'"))
    assert time.monotonic() - began < 4
    assert gateway.fleets == {}


MARKED = """
import os
def setup():
    if os.path.exists({marker!r}): raise RuntimeError("the second start fails")
    open({marker!r}, "w").close()
def f(): return 1
"""


async def test_crash_backoff_tells_waiting_callers_and_one_success_resets_it(
    gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "marker"
    fleet = await deployed(gateway, MARKED.format(marker=str(marker)))
    first = await ask(fleet)
    await post(first)
    fleet.release(first)
    os.kill(first.row.process["pid"], 9)
    await first.ended.wait()
    with pytest.raises(SchedulingError) as refused:
        await ask(fleet)
    assert refused.value.status == 503
    assert "the second start fails" in refused.value.for_owner
    assert apps.status(gateway, "tester", "app")["crash_backoff"]  # its process has not ended yet
    await until(lambda: not fleet.runners)
    (crashed,) = apps.runners(gateway, "tester", "app")
    assert crashed["state"] == "CRASH_BACKOFF"
    assert crashed["next_try_at"] == pytest.approx(fleet.next_try_at(), abs=1)
    assert "the second start fails" in crashed["cause"]
    began = time.monotonic()
    with pytest.raises(SchedulingError) as refused:
        await ask(fleet)
    said = r"CRASH_BACKOFF, next try in \d+ s.*second start"
    assert re.search(said, refused.value.for_owner)
    assert time.monotonic() - began < 1
    status = apps.status(gateway, "tester", "app")
    assert status["crash_backoff"]
    assert status["next_try_at"] == pytest.approx(crashed["next_try_at"], abs=1)
    assert len(rows(gateway)) == 2

    monkeypatch.setattr(autoscaler, "BACKOFF_STEP", 0.0)
    marker.unlink()
    runner = await ask(fleet)
    assert await post(runner) == (200, b"1")
    fleet.release(runner)
    assert fleet.failures == 0
    assert states(gateway, crashed["id"])[-1][0] == "TERMINATED"
    assert [r["state"] for r in apps.runners(gateway, "tester", "app")] == ["IDLE"]
    status = apps.status(gateway, "tester", "app")
    assert not status["crash_backoff"]
    assert status["next_try_at"] is None


async def test_crash_backoff_goes_on_under_the_next_gateway(tmp_path: Path) -> None:
    marker, folder = tmp_path / "marker", tmp_path / "state"
    folder.mkdir()
    first = open_gateway(folder)
    fleet = await deployed(first, MARKED.format(marker=str(marker)))
    (proving,) = fleet.runners.values()
    first.lifecycle.kill(proving, "the test ends it")
    await until(lambda: not fleet.runners)
    fleet.failures = 2  # as if two starts had failed before
    with pytest.raises(SchedulingError):
        await ask(fleet)
    await until(lambda: not fleet.runners)
    crashed, next_try_at = len(fleet.crashed), fleet.next_try_at()
    await first.close()

    second = open_gateway(folder)
    fleet = second.fleet("tester", "app")
    assert (fleet.failures, len(fleet.crashed)) == (3, crashed)
    assert fleet.next_try_at() == pytest.approx(next_try_at, abs=2)
    with pytest.raises(SchedulingError) as refused:
        await ask(fleet)
    assert re.search(r"CRASH_BACKOFF, next try in \d+ s.*second start", refused.value.for_owner)
    fleet.last_failure_at = 0.0
    marker.unlink()
    fleet.release(await ask(fleet))
    assert (fleet.failures, fleet.crashed) == (0, {})
    await close_gateway(second)


# --- runners that end ----------------------------------------------------------------------------
async def test_a_runner_that_ends_as_soon_as_it_is_ready_is_not_restarted_in_a_loop(
    gateway: Gateway,
) -> None:
    source = (
        "import os, threading\n"
        "def setup(): threading.Timer(0.5, os._exit, (3,)).start()\ndef f(): pass"
    )
    fleet = await deployed(gateway, source, min_concurrency=1)
    await until(lambda: fleet.failures and not fleet.runners)
    await asyncio.sleep(0.5)
    assert len(rows(gateway)) == 2
    with pytest.raises(SchedulingError) as refused:
        await ask(fleet)
    said = r"CRASH_BACKOFF.*ended by itself 0\.\d s after"
    assert re.search(said, refused.value.for_owner)
    assert "exit status 3" in rows(gateway)[0].cause


async def test_one_runner_that_ends_early_holds_nothing_up(gateway: Gateway) -> None:
    fleet = await deployed(gateway, STAY)
    for _ in range(2):
        first = gateway.lifecycle.start(fleet)
        await first.ready
        os.kill(first.row.process["pid"], 9)
        await first.ended.wait()
        assert (fleet.failures, first.row.state) == (0, "TERMINATED")
        second = await ask(fleet)
        assert (await post(second))[0] == 200
        fleet.release(second)


async def test_a_runner_that_has_lived_a_while_has_started_well(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states_of_runners, "PROVEN_AFTER", 0.05)
    fleet = await deployed(gateway, STAY, min_concurrency=1)
    fleet.failures = 1
    gateway.lifecycle.start(fleet)
    await until(lambda: fleet.failures == 0)
    (first, *_) = fleet.runners.values()
    os.kill(first.row.process["pid"], 9)
    await first.ended.wait()
    assert fleet.failures == 0


async def test_why_a_runner_could_not_be_started_is_told(gateway: Gateway) -> None:
    fleet = await deployed(gateway, STAY)
    folder = gateway.state / "runners"
    folder.rename(gateway.state / "moved")
    folder.write_text("in the way")
    runner = gateway.lifecycle.start(fleet)
    await runner.ended.wait()
    assert "the runner could not be started: [Errno 17]" in runner.row.cause
    folder.unlink()
    (gateway.state / "moved").rename(folder)


async def test_a_killed_idle_runner_is_recorded_and_the_minimum_restored(gateway: Gateway) -> None:
    fleet = await deployed(gateway, STAY, min_concurrency=1)
    runner = await ask(fleet)
    await post(runner)
    fleet.release(runner)
    os.kill(runner.row.process["pid"], 9)
    await runner.ended.wait()
    assert states(gateway, runner.row.id)[-1] == (
        "TERMINATED",
        "the runner ended by itself (SIGKILL)",
    )
    other = await until(lambda: fleet.serving())
    assert other is not runner


@pytest.mark.parametrize(
    ("code", "how"), [("os._exit(3)", "exit status 3"), ("os.kill(os.getpid(), 9)", "SIGKILL")]
)
async def test_a_runner_that_is_lost_with_a_request_says_how_it_ended_before_it_is_gone(
    gateway: Gateway, code: str, how: str
) -> None:
    fleet = await deployed(gateway, f"import os\ndef f(): {code}")
    runner = await ask(fleet)
    with pytest.raises(UpstreamError):
        await post(runner)
    gateway.lifecycle.kill(runner, "it closed the connection")
    assert await runner.how == how
    assert runner.row.cause == f"it closed the connection ({how})"
    assert runner.row.id in fleet.runners
    await runner.ended.wait()
    assert states(gateway, runner.row.id)[-1] == ("TERMINATED", runner.row.cause)
    fleet.release(runner)


async def test_a_runner_that_is_killed_here_did_not_end_by_itself(gateway: Gateway) -> None:
    fleet = await deployed(gateway, STAY, min_concurrency=1)
    runner = await ask(fleet)
    fleet.release(runner)
    gateway.lifecycle.kill(runner, "it is not wanted")
    await runner.ended.wait()
    assert (await runner.how, runner.row.cause) == ("it is not wanted", "it is not wanted")


async def test_a_runner_that_calls_exit_in_a_handler_goes_on(gateway: Gateway) -> None:
    fleet = await deployed(gateway, "import sys\ndef f(): sys.exit(1)")
    runner = await ask(fleet)
    assert (await post(runner))[0] == 500
    fleet.release(runner)
    assert runner.state == "IDLE"


@pytest.mark.parametrize("how", ["scale down", "delete", "redeploy"])
async def test_requests_in_flight_finish_when_their_runner_is_stopped(
    gateway: Gateway, how: str
) -> None:
    fleet = await deployed(gateway, SLOW, max_multiplexing=4)
    taken = [await ask(fleet) for _ in range(4)]
    sent = asyncio.gather(*(post(runner) for runner in taken[:2]))
    await asyncio.sleep(0)
    if how == "scale down":
        gateway.lifecycle.stop(taken[0], "scaled down")
    elif how == "delete":
        apps.delete(gateway, "tester", "app")
    else:
        await deployed(gateway, STAY)
    late = asyncio.gather(*(post(runner) for runner in taken[2:]))  # granted, not yet sent
    assert await sent == await late == [(200, b"1")] * 2
    for runner in taken:
        fleet.release(runner)
    await taken[0].ended.wait()
    assert not [row for row in rows(gateway) if "grace" in row.cause]


async def test_a_runner_that_does_not_end_is_killed_after_the_grace(gateway: Gateway) -> None:
    source = "import time\ndef f(): time.sleep(1000)"
    fleet = await deployed(gateway, source, termination_grace_period_seconds=1)
    runner = await ask(fleet)
    lost = asyncio.ensure_future(post(runner))
    await asyncio.sleep(0.05)
    gateway.lifecycle.stop(runner, "scaled down")
    with pytest.raises(UpstreamError):
        await lost
    await runner.ended.wait()
    fleet.release(runner)  # after its end: nothing breaks
    assert states(gateway, runner.row.id)[-2][0] == "TERMINATING"
    assert "termination_grace_period_seconds is spent" in states(gateway, runner.row.id)[-1][1]


async def test_when_all_stop_who_drains_patiently_has_its_grace_only(gateway: Gateway) -> None:
    source = "import time\ndef f(): time.sleep(1000)"
    fleet = await deployed(gateway, source, termination_grace_period_seconds=1)
    runner = await ask(fleet)
    lost = asyncio.ensure_future(post(runner))
    await asyncio.sleep(0.05)
    gateway.lifecycle.retire(runner, "another takes its place")
    await asyncio.sleep(1.5)
    assert runner.row.state == "DRAINING"
    await gateway.lifecycle.stop_all("the gateway stops", grace=60)
    with pytest.raises(UpstreamError):
        await lost
    fleet.release(runner)
    assert "termination_grace_period_seconds is spent" in states(gateway, runner.row.id)[-1][1]


async def test_a_stop_or_kill_before_the_process_exists_is_not_lost(gateway: Gateway) -> None:
    fleet = await deployed(gateway, STAY)
    for end in (gateway.lifecycle.stop, gateway.lifecycle.kill):
        runner = gateway.lifecycle.start(fleet)
        end(runner, "not wanted")
        end(runner, "twice")
        await asyncio.wait_for(runner.ended.wait(), 4)
        assert (runner.row.state, runner.row.cause) == ("TERMINATED", "not wanted")
    assert fleet.failures == 0


async def test_a_deleted_app_starts_no_runner_any_more(gateway: Gateway) -> None:
    fleet = await deployed(gateway, STAY, min_concurrency=1, max_concurrency=1)
    runner = await ask(fleet)
    waiting = asyncio.ensure_future(ask(fleet))
    await asyncio.sleep(0)
    apps.delete(gateway, "tester", "app")
    with pytest.raises(SchedulingError, match="deleted"):
        await waiting
    fleet.release(runner)
    await runner.ended.wait()
    await asyncio.sleep(0.02)
    assert len(rows(gateway)) == 1
    assert fleet.runners == {}


async def test_sigterm_from_outside_drains_the_runner(gateway: Gateway) -> None:
    fleet = await deployed(gateway, STAY)
    (runner,) = fleet.runners.values()
    os.kill(runner.row.process["pid"], 15)
    await asyncio.wait_for(runner.ended.wait(), 4)
    assert states(gateway, runner.row.id)[-1] == ("TERMINATED", "the runner was told to end")


async def test_pooled_connections_do_not_hold_a_draining_runner(gateway: Gateway) -> None:
    fleet = await deployed(gateway, STAY)
    runner = await ask(fleet)
    await post(runner)
    fleet.release(runner)
    gateway.lifecycle.stop(runner, "scaled down")
    await asyncio.wait_for(runner.ended.wait(), 2)


# --- adoption ------------------------------------------------------------------------------------
async def test_a_new_gateway_adopts_what_lives_and_buries_what_does_not(tmp_path: Path) -> None:
    first = open_gateway(tmp_path)
    fleet = await deployed(first, STAY, keep_alive=1000)
    runner = await ask(fleet)
    other = first.lifecycle.start(fleet)
    await other.ready
    fleet.release(runner)
    pending = rows(first)[0]
    await first.close()
    os.kill(other.row.process["pid"], 9)

    second = open_gateway(tmp_path)
    row = replace(pending, id="never", process={}, state="PENDING")
    row.address, row.ready_at = "", None
    with second.store.transaction():
        second.store.put(row)
    await second.close()

    third = open_gateway(tmp_path)
    fleet = third.fleets["tester", "app"]
    try:
        adopted = await until(lambda: fleet.serving())
        assert adopted.row.id == runner.row.id
        assert await post(adopted) == (200, b"1")
        dead = await until(lambda: [r for r in rows(third) if r.state == "TERMINATED"][1:])
        assert dead
        assert {r.id: r.state for r in rows(third)} == {
            runner.row.id: "IDLE", other.row.id: "TERMINATED", "never": "TERMINATED"
        }  # fmt: skip
        assert list(fleet.runners) == [runner.row.id]
        assert fleet.failures == 0
        os.kill(adopted.row.process["pid"], 9)
        await adopted.ended.wait()
        assert "it is ready" not in [row.cause for row in rows(third)]
    finally:
        await close_gateway(third)


@pytest.mark.parametrize("lost", ["the only one", "one of two", "by orphan_timeout"])
async def test_a_runner_lost_with_its_gateway_is_replaced_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    if lost == "by orphan_timeout":
        monkeypatch.setenv("FAL_NOTEBOOK_ORPHAN_TIMEOUT", "1")
    wanted = 2 if lost == "one of two" else 1
    first = open_gateway(tmp_path)
    options: dict[str, Any] = {"min_concurrency": wanted, "max_concurrency": 2}
    fleet = await deployed(first, STAY, **options)
    await until(lambda: [r.state for r in fleet.runners.values()] == ["IDLE"] * wanted)
    before = rows(first)
    await first.close()
    if lost != "by orphan_timeout":
        os.kill(before[0].process["pid"], 9)
    await until(lambda: not first.targets.local.alive(before[0].process))

    second = open_gateway(tmp_path)
    fleet = second.fleets["tester", "app"]
    try:
        runners = fleet.runners.values()
        await until(lambda: [r.state for r in runners] == ["IDLE"] * wanted, 5)
        assert fleet.failures == 0
        assert not apps.status(second, "tester", "app")["crash_backoff"]
        assert before[0].id not in fleet.runners
    finally:
        await close_gateway(second)


async def test_an_adopted_runner_keeps_its_keep_alive(tmp_path: Path) -> None:
    first = open_gateway(tmp_path)
    await deployed(first, STAY, keep_alive=1000)
    (row,) = rows(first)
    row.ready_at = time.time() - 500
    with first.store.transaction():
        first.store.put(row)
    await first.close()
    second = open_gateway(tmp_path)
    fleet = second.fleets["tester", "app"]
    await until(lambda: fleet.serving())
    await asyncio.sleep(0.05)
    assert fleet.serving() is not None
    await close_gateway(second)


# --- what must not leak --------------------------------------------------------------------------
async def test_many_lives_leak_no_descriptor_task_or_file(gateway: Gateway) -> None:
    fleet = await deployed(gateway, STAY, max_concurrency=3)

    async def life() -> None:
        runner = gateway.lifecycle.start(fleet)
        await runner.ready
        gateway.lifecycle.kill(runner, "test")
        await runner.ended.wait()

    await life()
    await asyncio.sleep(0.05)
    before = psutil.Process().num_fds(), len(asyncio.all_tasks())
    for _ in range(20):
        await life()
    await until(lambda: (psutil.Process().num_fds(), len(asyncio.all_tasks())) == before)
    assert len(list((gateway.state / "runners").iterdir())) == len(fleet.runners)
    assert len(list(gateway.targets.local.address_folder.iterdir())) == len(fleet.runners)


async def test_an_error_of_our_own_ends_the_runner_and_is_logged(
    gateway: Gateway, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = await deployed(gateway, STAY)
    monkeypatch.setattr(fleet, "grant", None)
    other = gateway.lifecycle.start(fleet)
    await other.ended.wait()
    monkeypatch.undo()
    assert "the gateway failed: TypeError" in other.row.cause
    assert "is ended for an error of the gateway" in caplog.text
    assert not gateway.targets.local.alive(other.row.process)
