"""The warm process: replaced when it dies, gone when the gateway goes, nobody else's business."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from runner_bench import Bench

from fal_notebook.backends import zygotes

pytestmark = pytest.mark.linux  # where runners are forked

STAY = "def f(): return 1"


@pytest.fixture
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    bench = Bench(tmp_path_factory.mktemp("b"), tmp_path_factory.mktemp("s"), fork=True)
    yield bench
    bench.close()


def zygote(bench: Bench) -> psutil.Process:
    (found,) = [
        child for child in psutil.Process().children() if str(bench.state) in _command(child)
    ]
    return found


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def test_one_zygote_serves_many_starts_at_once(bench: Bench) -> None:
    with ThreadPoolExecutor(8) as pool:
        runners = list(pool.map(lambda _: bench.start(STAY), range(8)))
    assert len({runner.pid for runner in runners}) == 8
    assert zygote(bench).num_threads() == 1


def test_an_environment_that_starts_threads_is_spawned(bench: Bench, tmp_path: Path) -> None:
    threaded = tmp_path / "threaded"
    make = [sys.executable, "-m", "uv", "venv", "--quiet", "--python", sys.executable, threaded]
    subprocess.run(make, check=True)
    (packages,) = threaded.glob("lib/python3*/site-packages")
    thread = "import threading, time; threading.Thread(target=time.sleep, args=(99,), daemon=True)"
    (packages / "a_thread.pth").write_text(f"{sysconfig.get_path('purelib')}\n{thread}.start()\n")
    bench.environment = {"python": str(threaded / "bin/python"), "libraries": ""}
    source = "def f():\n    import threading\n    return threading.active_count()"
    runner = bench.start(source)
    assert runner.value() > 1
    assert "kept" in _command(psutil.Process(runner.pid))


def test_a_killed_zygote_is_replaced_and_its_runners_live_on(bench: Bench) -> None:
    first = bench.start(STAY)
    os.kill(zygote(bench).pid, 9)
    second = bench.start(STAY)
    assert (first.value(), second.value()) == (1, 1)


def test_a_zygote_that_hangs_is_killed_and_replaced(
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    eventually: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench.start(STAY)
    monkeypatch.setattr(zygotes, "FORK_TIMEOUT", 0.2)
    stopped = zygote(bench)
    stopped.suspend()
    assert bench.start(STAY).value() == 1
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == (
        f"the environment's warm process gave no answer in 0.2 s; it was killed (pid {stopped.pid})"
    )
    eventually(lambda: not stopped.is_running() or stopped.status() == psutil.STATUS_ZOMBIE)


def test_a_zygote_that_hangs_does_not_hold_the_gateways_end(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, eventually: Any
) -> None:
    monkeypatch.setattr(zygotes, "CLOSE_GRACE", 0.1)
    bench.start(STAY)
    stopped = zygote(bench)
    stopped.suspend()
    bench.run(bench.backend.close())
    eventually(lambda: not stopped.is_running() or stopped.status() == psutil.STATUS_ZOMBIE)


def test_a_zygote_ends_with_its_gateway_and_its_runners_live_on(
    bench: Bench, eventually: Any
) -> None:
    runner = bench.start(STAY)
    warm = zygote(bench)
    bench.run(bench.backend.close())
    eventually(lambda: not warm.is_running() or warm.status() == psutil.STATUS_ZOMBIE)
    assert runner.value() == 1


def test_runners_do_not_hold_the_zygotes_socket(bench: Bench) -> None:
    runner = bench.start(STAY)
    warm = zygote(bench)
    held = _sockets(warm.pid)
    assert held
    assert not held & _sockets(runner.pid)
    assert not held & _sockets(runner.process["keeper"])


def _sockets(pid: int) -> set[str]:
    folder = f"/proc/{pid}/fd"
    links = {os.readlink(f"{folder}/{name}") for name in os.listdir(folder)}
    return {link for link in links if link.startswith("socket:")}


def test_a_zygote_leaves_no_zombies(bench: Bench, eventually: Any) -> None:
    runner = bench.start(STAY)
    warm = zygote(bench)
    runner.kill()
    eventually(lambda: warm.children() == [])


def test_a_runner_whose_keeper_is_killed_ends_too(bench: Bench, eventually: Any) -> None:
    runner = bench.start(STAY)
    os.kill(runner.process["keeper"], 9)
    eventually(lambda: not runner.alive())


def test_many_starts_leak_no_descriptor(bench: Bench) -> None:
    bench.start(STAY).kill()
    before = psutil.Process().num_fds(), zygote(bench).num_fds()
    for _ in range(25):
        bench.start(STAY, ready=False).kill()
    assert (psutil.Process().num_fds(), zygote(bench).num_fds()) == before
