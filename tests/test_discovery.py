"""The gateway is found through its file, started on demand, once, and replaced when it is gone."""

from __future__ import annotations

import functools
import json
import os
import re
import resource
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

import fal_notebook
from fal_notebook import cli, discovery, handle, state_lock, sync
from fal_notebook.backends.zygotes import INHERITED
from fal_notebook.client import Client
from fal_notebook.client_errors import gone
from fal_notebook.exceptions import DeployError, GatewayUnavailableError
from fal_notebook.magics.gateway_names import GatewayNames


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A state folder of this test; its gateway is stopped at the end."""
    client = Client()
    monkeypatch.setenv("FAL_NOTEBOOK_STATE", str(tmp_path))
    monkeypatch.setattr(handle, "_client_of", functools.cache(lambda pid: client))
    yield tmp_path
    cli.run(["gateway", "stop"], "fal-notebook")
    sync.wait(client.close())


def kill(info: discovery.GatewayInfo) -> None:
    """End a gateway without giving it a chance to clear up."""
    process = psutil.Process(info.pid)
    process.kill()
    process.wait(10)


def deploy_seven() -> handle.Handle:
    def seven() -> int:
        return 7

    return fal_notebook.deploy(seven, wait=True)


def test_the_file_is_private_and_the_gateway_answers(state) -> None:
    info = discovery.ensure(state)
    assert stat.S_IMODE(discovery.info_file(state).stat().st_mode) == 0o600
    assert discovery.answers(info)
    assert discovery.find(state) == info
    assert info.token not in repr(info)


def test_a_gateway_takes_over_what_it_needs_of_its_starters_environment(state, monkeypatch) -> None:
    for name in ("DEPSEC", "DOCKER_PASSWORD", "PYTHON_TOKEN", "FAL_KEY"):
        monkeypatch.setenv(name, "a value of the starter only")
    kept = {"PIP_INDEX_URL": "https://x.test", "DOCKER_HOST": "unix:///x", "LC_TIME": "C"}
    for name, value in kept.items():
        monkeypatch.setenv(name, value)
    seen = psutil.Process(discovery.ensure(state).pid).environ()
    assert "a value of the starter only" not in seen.values()
    assert kept.items() <= seen.items()
    assert seen["FAL_NOTEBOOK_STATE"] == str(state)


def test_a_gateway_takes_over_all_that_runners_inherit(monkeypatch) -> None:
    for name in INHERITED:
        monkeypatch.setenv(name, "x")
    assert set(INHERITED) <= discovery.clean_environment().keys()


def test_two_that_need_a_gateway_at_once_start_one(state) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(lambda _: discovery.ensure(state).pid, range(4)))
    assert len(found) == 1


def test_processes_that_need_a_gateway_at_once_start_one(state) -> None:
    code = "from fal_notebook import discovery as d, settings as s; "
    code += "print(d.ensure(s.state_folder()).pid)"
    started = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert len({process.communicate(timeout=30)[0] for process in started}) == 1


def test_a_stale_file_is_replaced_and_the_url_stays(state) -> None:
    first = discovery.ensure(state)
    kill(first)
    second = discovery.ensure(state)
    assert second.pid != first.pid
    assert second.token != first.token
    assert second.url == first.url


def test_a_gateway_that_ended_leaves_no_zombie(state, eventually) -> None:
    info = discovery.ensure(state)
    os.kill(info.pid, signal.SIGKILL)
    assert eventually(lambda: not psutil.pid_exists(info.pid))


def test_an_app_is_still_there_when_its_gateway_was_killed(state) -> None:
    seven = deploy_seven()
    url = seven.url
    kill(discovery.ensure(state))
    assert seven() == 7
    assert seven.url == url


def test_who_takes_the_port_of_a_killed_gateway_is_not_asked(state) -> None:
    seven = deploy_seven()
    info = discovery.ensure(state)
    names = GatewayNames(fresh=0)
    assert names.apps() == ["seven"]
    kill(info)
    port = int(info.url.rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)) as other:
        names.apps()
        assert seven() == 7
        other.settimeout(0)
        with pytest.raises(BlockingIOError):  # nobody came
            other.accept()


@pytest.mark.linux  # for /proc
def test_a_gateway_that_only_waits_for_its_parent_has_gone() -> None:
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        info = discovery.GatewayInfo("http://127.0.0.1:1", "t", process.pid, 1, "")
        assert psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE
        assert not discovery.is_alive(info)


def test_a_call_that_loses_its_gateway_says_that_it_may_have_run(
    state, tmp_path, eventually
) -> None:
    def slow(path: str) -> None:
        import pathlib

        pathlib.Path(path).touch()
        time.sleep(60)

    began = tmp_path / "began"
    call = fal_notebook.deploy(slow, wait=True, termination_grace_period_seconds=0)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(call, str(began))
        eventually(lambda: began.exists() or answer.done())
        kill(discovery.ensure(state))
        with pytest.raises(GatewayUnavailableError) as caught:
            answer.result()
    assert str(caught.value) == (
        "the gateway went away before it answered: the request may have been carried out and was "
        "not sent again; repeat it if that does no harm, the gateway starts by itself"
    )


def test_an_answer_that_comes_too_late_is_no_gateway_that_went_away() -> None:
    error = gone(httpx.ReadTimeout("late"), answered=False)
    assert str(error) == "no answer came in time; the request may be carried out all the same"


def test_calls_at_once_find_the_next_gateway(state) -> None:
    seven = deploy_seven()
    seven.scale(max_concurrency=2)
    kill(discovery.ensure(state))
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: seven(), range(4))) == [7] * 4


def test_a_deploy_that_loses_its_gateway_says_so(state) -> None:
    def slow() -> None:

        time.sleep(60)

    waiting = fal_notebook.deploy(lambda: 1, name="slow", setup_function=slow)
    kill(discovery.ensure(state))
    with pytest.raises(
        DeployError, match=r"the gateway (was )?stopped during the deploy; deploy again"
    ):
        waiting.wait()


@pytest.mark.parametrize("content", ["{}", "no json", "[1]", ""])
def test_a_file_that_makes_no_sense_is_no_gateway(state, content: str) -> None:
    discovery.info_file(state).write_text(content)
    assert discovery.find(state) is None


def test_a_newer_gateways_file_may_say_more(state) -> None:
    info = discovery.ensure(state)
    content = json.loads(discovery.info_file(state).read_text())
    discovery.info_file(state).write_text(json.dumps({**content, "more": 1}))
    assert discovery.find(state) == info


def test_an_older_gateway_is_replaced_and_its_runners_adopted(state) -> None:
    seven = deploy_seven()
    (runner,) = seven.runners()
    old = discovery.ensure(state)
    content = json.loads(discovery.info_file(state).read_text())
    discovery.info_file(state).write_text(json.dumps({**content, "protocol": 0}))
    new = discovery.ensure(state)
    assert new.pid != old.pid
    assert seven() == 7
    assert [r["id"] for r in seven.runners()] == [runner["id"]]


def test_one_that_is_still_ending_is_waited_for(state) -> None:
    held = state_lock.take(state)
    assert held is not None
    timer = threading.Timer(0.3, os.close, (held,))
    timer.start()
    assert discovery.answers(discovery.ensure(state))
    timer.join()


def test_one_that_does_not_answer_is_named(state, monkeypatch) -> None:
    monkeypatch.setattr(discovery, "START_TIMEOUT", 0.3)
    refused = pytest.raises(GatewayUnavailableError, match=r"holds .* and does not answer")
    held = state_lock.take(state)
    assert held is not None
    with refused:
        discovery.ensure(state)
    os.close(held)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("LOGS_MAX_BYTES", "1GB", "is '1GB', which is not a whole number"),
        ("RESULTS_KEPT", "-1", "is -1, which is below 0"),
    ],
)
def test_a_wrong_setting_is_refused_at_the_start(state, monkeypatch, name, value, said) -> None:
    monkeypatch.setenv(f"FAL_NOTEBOOK_{name}", value)
    with pytest.raises(GatewayUnavailableError, match=said):
        discovery.ensure(state)


@pytest.mark.parametrize("port", [-1, 70000])
def test_what_is_no_port_is_said_in_one_sentence(state, monkeypatch, port: int) -> None:
    monkeypatch.setenv("FAL_NOTEBOOK_PORT", str(port))
    refused = f"port={port} is not a port; they go from 1 to 65535"
    with pytest.raises(GatewayUnavailableError, match=refused):
        discovery.ensure(state)


def test_a_taken_port_is_said_in_one_sentence(state, monkeypatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv("FAL_NOTEBOOK_PORT", str(port))
        with pytest.raises(GatewayUnavailableError, match=f"port={port} cannot be used") as caught:
            discovery.ensure(state)
    assert "\n" not in str(caught.value)
    assert "Address already in use" in str(caught.value)


def test_a_wrong_setting_of_the_gateway_is_said_in_one_sentence(state, monkeypatch) -> None:
    monkeypatch.setenv("FAL_NOTEBOOK_PORT", "eighty")
    with pytest.raises(GatewayUnavailableError, match="FAL_NOTEBOOK_PORT is 'eighty'"):
        discovery.ensure(state)


def test_a_folder_that_cannot_be_written_is_said_in_one_sentence(state) -> None:
    (state / "start.lock").mkdir()
    with pytest.raises(GatewayUnavailableError, match="the gateway cannot be started") as caught:
        discovery.ensure(state)
    assert "\n" not in str(caught.value)
    (state / "start.lock").rmdir()


def test_a_configured_port_survives_a_restart_with_a_new_token(state, monkeypatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        monkeypatch.setenv("FAL_NOTEBOOK_PORT", str(free.getsockname()[1]))
    seven = deploy_seven()
    cli.run(["gateway", "stop"], "fal-notebook")
    discovery.ensure(state)
    assert seven() == 7


def test_a_full_disk_is_the_reason_when_the_gateway_could_say_none(state, monkeypatch) -> None:
    silent = state / "python"
    silent.write_text("#!/bin/sh\nexit 1\n")
    silent.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(silent))
    with pytest.raises(GatewayUnavailableError, match="did not start: it said nothing"):
        discovery.ensure(state)
    with pytest.raises(GatewayUnavailableError, match="cannot be written: File too large") as told:
        _with_no_room(lambda: discovery.ensure(state))
    assert "\n" not in str(told.value)


def _with_no_room(action: Callable[[], Any]) -> None:
    """Let files have no byte more than they have, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        action()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_gateway_that_is_said_to_have_stopped_has_ended(state) -> None:
    for _ in range(3):
        process = psutil.Process(discovery.ensure(state).pid)
        assert cli.run(["gateway", "stop"], "fal-notebook") == "the gateway has stopped"
        assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_start_stop_and_status_work_in_every_order(state) -> None:
    def gateway(verb: str) -> str:
        return str(cli.run(["gateway", verb], "fal-notebook"))

    assert gateway("stop") == "no gateway runs"
    assert gateway("status").startswith("no gateway runs; its log is ")
    first = gateway("start")
    assert re.match(r"the gateway runs at http://127.0.0.1:\d+ \(pid \d+\)", first)
    assert gateway("start") == first
    assert "http://127.0.0.1" in gateway("status")
    assert gateway("stop") == "the gateway has stopped"
    assert gateway("stop") == "no gateway runs"
    assert gateway("start") != first


def test_stop_ends_what_a_killed_gateway_left_and_says_so(state) -> None:
    def where() -> int:
        return os.getpid()

    process = psutil.Process(fal_notebook.deploy(where, min_concurrency=1)())
    kill(discovery.ensure(state))
    assert process.is_running()
    stopped = cli.run(["gateway", "stop"], "fal-notebook")
    assert stopped == "no gateway ran; the runners that the last one had left have ended"
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    assert cli.run(["gateway", "stop"], "fal-notebook") == "no gateway runs"


def test_stop_may_leave_the_runners_of_a_killed_gateway(state) -> None:
    deploy_seven().scale(min_concurrency=1)
    kill(discovery.ensure(state))
    kept = cli.run(["gateway", "stop", "--keep-runners"], "fal-notebook")
    assert kept == "no gateway runs"
    assert discovery.left_runners(state)
