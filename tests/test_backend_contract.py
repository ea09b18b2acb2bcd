"""What every backend promises: the local one with and without a zygote, and that of containers."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from runner_bench import Bench, LiveRunner

from fal_notebook.exceptions import BuildError

LINUX = pytest.mark.linux
LOCAL = [
    pytest.param({"fork": True, "keep": True}, id="fork", marks=LINUX),
    pytest.param({"fork": False, "keep": True}, id="launch", marks=LINUX),
    pytest.param({"fork": False, "keep": False}, id="spawn"),
]
KINDS = [*LOCAL, pytest.param({"docker": True}, id="docker", marks=LINUX)]
# For what is said of processes only.
of_processes = pytest.mark.parametrize("bench", LOCAL, indirect=True)
of_containers = pytest.mark.parametrize("bench", KINDS[3:], indirect=True)
STAY = "def f(x: int = 1): return x + 1"


@pytest.fixture(scope="module", params=KINDS)
def bench(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Bench]:
    state = tmp_path_factory.mktemp("state") / ("long" * 50)
    state.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        if "docker" in request.param:
            patch.setenv("DOCKER_HOST", request.getfixturevalue("docker_host"))
        bench = Bench(state, tmp_path_factory.mktemp("s"), **request.param)
        yield bench
        bench.close()


@pytest.fixture(scope="module")
def runner(bench: Bench) -> LiveRunner:
    """A runner that several tests look at and none ends."""
    return bench.start(STAY)


def test_a_runner_tells_its_states_and_answers(runner: LiveRunner) -> None:
    states = []
    for line in runner.states():
        states.append(line["state"])
        if line["state"] == "IDLE":
            assert line["openapi"]["paths"].keys() == {"/"}
            break
    assert states == ["SETUP", "IDLE"]
    assert runner.value(x=2) == 3
    assert runner.call(4)[0][0] == "return"


def test_what_was_built_is_restored_while_it_is_there(bench: Bench, runner: LiveRunner) -> None:
    built = bench.environment_of(Path(runner.spec.payload))
    gone = {**built, "python": "/nowhere/python", "image": "fal-notebook/app:none"}
    assert bench.run(bench.backend.restore(built, dict)) is True
    assert bench.run(bench.backend.restore(gone, dict)) is False


@pytest.mark.parametrize("path", ["/", "/health", "/openapi.json"])
@pytest.mark.parametrize(
    "headers",
    [{"x-fal-runner-secret": "wrong"}, {}, {"x-fal-link": "states"}, {"x-fal-link": "end"}],
)
def test_without_its_secret_a_runner_refuses(
    runner: LiveRunner, path: str, headers: dict[str, str]
) -> None:
    with runner.client() as client:
        del client.headers["x-fal-runner-secret"]
        assert client.post(path, headers=headers).status_code == 403


def test_without_its_secret_nothing_is_unpickled(runner: LiveRunner, tmp_path: Path) -> None:
    trap = tmp_path / "unpickled"
    content = f"cos\nsystem\n(S'touch {trap}'\ntR.".encode()
    headers = {"content-type": "application/vnd.fal-notebook.pickle"}
    with runner.client(secret="guess") as client:
        assert client.post("/", content=content, headers=headers).status_code == 403
    assert not trap.exists()


@of_processes
def test_the_socket_is_its_users_only(runner: LiveRunner) -> None:
    path = Path(runner.socket)
    assert runner.started.address == f"unix:{path}"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_runner_with_a_link_is_not_watched_by_its_backend(
    bench: Bench, runner: LiveRunner
) -> None:
    assert bench.backend.states(runner.process, runner.spec.runner_id) is None


def test_stats_are_of_the_runner(bench: Bench, runner: LiveRunner, eventually: Any) -> None:
    stats = eventually(lambda: bench.backend.stats(runner.process))
    assert stats.keys() == {"cpu_percent", "memory_bytes"}
    assert stats["memory_bytes"] > 1e6
    assert bench.backend.stats({}) == {}


def test_alive_is_what_was_started(bench: Bench, runner: LiveRunner) -> None:
    assert bench.backend.alive(runner.process)
    assert not bench.backend.alive({})


@of_processes
def test_stats_of_no_process_are_empty(bench: Bench) -> None:
    assert bench.backend.stats({"pid": 2**22 + 1}) == {}


@of_processes
def test_alive_means_this_very_process(bench: Bench, runner: LiveRunner) -> None:
    assert bench.backend.alive(runner.process)
    assert not bench.backend.alive({**runner.process, "created": 1.0})
    assert not bench.backend.alive({"pid": 2**22 + 1, "created": 0.0})
    assert not bench.backend.alive({})


@of_processes
def test_kill_spares_a_process_that_got_the_number(bench: Bench, runner: LiveRunner) -> None:
    foreign = {"pid": runner.pid, "created": 1.0}
    bench.run(bench.backend.kill(foreign, "nobody"))
    bench.run(bench.backend.stop(foreign, "nobody"))
    assert runner.alive()


def test_stop_drains_and_kill_after_it_does_nothing(bench: Bench, eventually: Any) -> None:
    runner = bench.start(STAY)
    runner.stop()
    eventually(lambda: not runner.alive())
    runner.stop()
    runner.kill()
    assert not Path(runner.socket).exists()


CHILDREN = """
import multiprocessing, os, subprocess, sys, time
def forked():
    os.setsid()
    if os.fork() == 0:
        os.environ.clear()
        print("daemon", os.getpid())
        time.sleep(1000)
    os._exit(0)
def f():
    plain = subprocess.Popen(["sleep", "1000"]).pid
    apart = subprocess.Popen(["sleep", "1000"], start_new_session=True).pid
    command = "setsid sleep 1000 >/dev/null 2>&1 & echo $!"
    double = subprocess.run(command, shell=True, capture_output=True).stdout
    pool = multiprocessing.get_context("fork").Process(target=time.sleep, args=(1000,))
    pool.start()
    daemon = multiprocessing.get_context("fork").Process(target=forked)
    daemon.start(); daemon.join()
    return [plain, apart, int(double), pool.pid]
"""


@of_processes
@pytest.mark.parametrize("how", ["kill", "stop", "kill -9 from outside"])
def test_all_that_a_runner_started_ends_with_it(bench: Bench, how: str, eventually: Any) -> None:
    runner = bench.start(CHILDREN)
    children = _reported(runner, eventually)
    assert all(psutil.pid_exists(pid) for pid in children)
    if how == "stop":
        runner.stop()
        eventually(lambda: not runner.alive())
    elif how != "kill":
        os.kill(runner.pid, 9)
        eventually(lambda: not runner.alive())
    runner.kill()
    eventually(lambda: not any(_lives(pid) for pid in children))


def _reported(runner: LiveRunner, eventually: Any) -> list[int]:
    """Return the ids of the children, also of the one that only the log knows."""
    children = runner.value()
    line = eventually(lambda: next((x for x in runner.log() if x.startswith("daemon")), ""))
    return [*children, int(line.split()[1])]


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def test_a_runner_that_cannot_load_its_payload_says_so(bench: Bench) -> None:
    good = bench.start(STAY)
    Path(good.spec.payload).write_bytes(b"something else")
    other = LiveRunner(bench, b"something else", {})
    bench.runners.append(other)
    failure = next(line for line in other.states() if line["state"] == "FAILED")
    assert "not a fal_notebook payload" in failure["error"]


@of_processes
def test_an_interpreter_that_is_not_there_is_a_build_error(bench: Bench) -> None:
    environment, bench.environment = bench.environment, {"python": "/no/python", "libraries": ""}
    try:
        with pytest.raises(BuildError, match="/no/python cannot be executed: No such file"):
            bench.start(STAY, ready=False)
    finally:
        bench.environment = environment


SERVER = """FROM python:{python}-slim
RUN mkdir /served
WORKDIR /served
CMD trap 'exit 7' TERM; echo beginning; python3 -m http.server 8000 & wait
"""


@of_containers
@pytest.mark.parametrize(
    ("how", "cause"), [("stop", "exit status 7"), ("kill -9 from outside", "SIGKILL")]
)
def test_a_server_without_a_link_has_its_states_told_by_its_backend(
    bench: Bench, how: str, cause: str, eventually: Any
) -> None:
    dockerfile = SERVER.replace("{python}", "{}.{}".format(*sys.version_info))
    image = {"dockerfile_str": dockerfile}
    server = LiveRunner(bench, b"", {"exposed_port": 8000}, image)
    told = server.told()
    assert next(told) == {"state": "SETUP"}
    ready = next(line for line in told if line["state"] != "SETUP")
    host, _, port = ready["address"].removeprefix("tcp:").rpartition(":")
    assert (ready["state"], port) == ("IDLE", "8000")
    assert httpx.get(f"http://{host}:{port}/").status_code == 200
    assert server.alive()
    assert eventually(lambda: bench.backend.stats(server.process))["memory_bytes"] > 1e5
    assert list(zip(("SETUP", "IDLE"), [line["state"] for line in again(server)], strict=True))
    if how == "stop":
        server.stop()
    else:
        server.signal("SIGKILL")
    (last,) = told
    assert last == {"state": "ENDED", "cause": f"the server ended with {cause}"}
    assert not server.alive()
    assert "beginning" in server.log()
    assert cause in server.kill()
    assert server.kill() == ""


def again(server: LiveRunner) -> list[dict[str, Any]]:
    """Return the states up to IDLE, as the next gateway hears them."""
    told = server.told()
    return [next(told), next(told)]
