"""Nothing that an app started outlives it, whichever of its processes is killed with -9."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest
from runner_bench import Bench, LiveRunner, define, notebook

from fal_notebook import deploy
from fal_notebook.discovery import GatewayInfo

pytestmark = pytest.mark.linux  # for child subreapers

# Three processes that have left the runner's session, its environment and its line of descent;
# the name of one is no text and looks as if the command's name ended in the midst of it.
SOURCE = r"""
import os, subprocess, sys
def setup():
    os.symlink(os.path.realpath(sys.executable), b"\xff) 1 x")
    odd = "./*x -c 'import time; time.sleep(1000)' TAG"
    tree = f"setsid sh -c 'sleep TAG & exec sleep TAG' >/dev/null 2>&1 & setsid {odd} 2>err &"
    subprocess.run(["/bin/sh", "-c", tree], env={})
def f(): return 1
"""


@pytest.fixture(scope="module", params=[True, False], ids=["fork", "spawn"])
def bench(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Bench]:
    folders = tmp_path_factory.mktemp("b"), tmp_path_factory.mktemp("s")
    bench = Bench(*folders, fork=request.param)
    yield bench
    bench.close()


def start(bench: Bench, eventually: Any) -> tuple[LiveRunner, str]:
    """Return a runner, and what the command lines of its three daemons hold."""
    tag = str(uuid.uuid4().int)[:15]
    runner = bench.start(SOURCE.replace("TAG", tag))
    eventually(lambda: daemons(tag) == 3)
    return runner, tag


def daemons(tag: str) -> int:
    found = psutil.process_iter(["cmdline", "status"])
    lines = [p.info["cmdline"] for p in found if p.info["status"] != psutil.STATUS_ZOMBIE]
    return sum(line[-1:] == [tag] for line in lines if line)


# A gateway that is away at each usual look, and back in between.
OFTEN_AWAY = """
import os, signal, time
from fal_notebook.runner import keeper
began = time.monotonic()
keeper.has_gateway = lambda state: 0.15 < (time.monotonic() - began) % 0.5 < 0.45
keeper._PAUSE = 0.05
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
runner = os.fork()
if not runner:
    time.sleep(3.2)
    os._exit(7)
print(keeper._guard(runner, "", 2.0))
"""
HOLD = {
    "no thread runs": "import re\ndef f(): print('begun'); re.match('(a+)+$', 'a' * 40 + 'b')",
    "the loop does not": "async def f():\n    print('begun')\n    while True: pass",
}


def zygote(runner: LiveRunner) -> psutil.Process:
    parent = psutil.Process(runner.process["keeper"]).parent()
    assert parent is not None
    return parent


def gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize("victim", ["pid", "keeper"])
def test_a_daemon_ends_with_the_runner_or_its_keeper(
    bench: Bench, victim: str, eventually: Any
) -> None:
    other, others = start(bench, eventually)
    runner, tag = start(bench, eventually)
    warm = zygote(runner)
    os.kill(runner.process[victim], 9)
    eventually(lambda: daemons(tag) == 0 and not runner.alive())
    eventually(lambda: [child.pid for child in warm.children()] == [other.process["keeper"]])
    assert (other.value(), daemons(others)) == (1, 3)
    other.kill()
    eventually(lambda: daemons(others) == 0)


def test_a_killed_zygote_takes_nothing_along_and_leaves_nothing(
    bench: Bench, eventually: Any
) -> None:
    runner, tag = start(bench, eventually)
    warm = zygote(runner)
    warm.kill()
    eventually(lambda: gone(warm))
    assert (runner.value(), daemons(tag)) == (1, 3)
    os.kill(runner.pid, 9)
    eventually(lambda: daemons(tag) == 0 and not psutil.pid_exists(runner.process["keeper"]))


def test_a_zygote_without_a_gateway_stays_until_its_last_runner_has_ended(
    bench: Bench, eventually: Any
) -> None:
    (first, one), (second, two) = start(bench, eventually), start(bench, eventually)
    warm = zygote(first)
    bench.run(_forget_zygotes(bench))
    os.kill(first.process["keeper"], 9)
    eventually(lambda: daemons(one) == 0)
    assert (second.value(), daemons(two)) == (1, 3)
    os.kill(second.process["keeper"], 9)
    eventually(lambda: daemons(two) == 0 and gone(warm))


@pytest.mark.parametrize("wait", [True, False])
def test_nothing_stays_when_first_the_zygote_and_then_the_keeper_is_killed(
    gateway: GatewayInfo, eventually: Any, wait: bool
) -> None:
    tag = str(uuid.uuid4().int)[:15]
    source = SOURCE.replace("TAG", tag).replace("return 1", "return os.getppid()")
    with notebook():
        names = define(source)
        app = deploy(names["f"], setup_function=names["setup"], wait=True, min_concurrency=1)
    keeper = psutil.Process(app())
    warm, runner = keeper.parent(), keeper.children()[0]
    assert warm is not None
    warm.kill()
    if wait:
        eventually(lambda: keeper.ppid() == gateway.pid)
        assert (app(), daemons(tag)) == (keeper.pid, 3)
    keeper.kill()
    eventually(lambda: daemons(tag) == 0 and gone(runner))
    eventually(lambda: app() != keeper.pid)
    app.delete()
    eventually(lambda: daemons(tag) == 0 and not zombies(gateway))


def test_a_keeper_without_a_zygote_is_buried_by_the_gateway(
    gateway: GatewayInfo, eventually: Any
) -> None:
    with notebook():
        function = define("import os\ndef f(): return os.getppid()")["f"]
        app = deploy(function, wait=True, min_concurrency=1)
    keeper = psutil.Process(app())
    warm = keeper.parent()
    assert warm is not None
    warm.kill()
    eventually(lambda: keeper.ppid() == gateway.pid)
    app.delete()
    eventually(lambda: not keeper.is_running() and not zombies(gateway))


def zombies(gateway: GatewayInfo) -> list[psutil.Process]:
    children = psutil.Process(gateway.pid).children()
    return [child for child in children if gone(child)]


async def _forget_zygotes(bench: Bench) -> None:
    """Close their sockets, as the kernel does for a gateway that was killed."""
    for task in bench.backend._zygotes._all.values():
        task.result().drop()


def test_starts_beside_killed_keepers_are_spared(bench: Bench, eventually: Any) -> None:
    for _ in range(8):
        victim = bench.start("def f(): return 1", ready=False)
        os.kill(victim.process["keeper"], 9)
        assert bench.start("def f(): return 1", ready=False).alive()
    eventually(lambda: sum(runner.alive() for runner in bench.runners[-16:]) == 8)
    for runner in bench.runners[-15::2]:
        runner.wait_for("IDLE")


@pytest.mark.parametrize("source", HOLD.values(), ids=HOLD)
def test_code_that_lets_its_runner_do_nothing_ends_when_the_gateway_has_gone(
    bench: Bench, source: str, eventually: Any
) -> None:
    runner = bench.start(source, orphan_timeout=0.4)
    with runner.client() as client, pytest.raises(httpx.ReadTimeout):
        client.post("/", timeout=2)
    assert "begun" in runner.log()
    assert psutil.pid_exists(runner.pid)
    with bench.without_gateway():
        eventually(lambda: not psutil.pid_exists(runner.pid))


def test_a_gateway_that_is_killed_again_and_again_keeps_its_runners() -> None:
    done = subprocess.run([sys.executable, "-c", OFTEN_AWAY], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("7\n", "")
