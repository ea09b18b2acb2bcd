"""The local backend under a gateway: builds, long paths, and no orphan when gateways are killed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from inside import close_gateway, deployed, open_gateway
from runner_bench import payload

from fal_notebook import discovery
from fal_notebook.backends.base import BuildOrder
from fal_notebook.backends.local import LocalBackend
from fal_notebook.gateway.gateway import sockets_folder
from fal_notebook.gateway.store import RunnerRow, Store


def silent(line: str) -> None:
    raise AssertionError(line)


async def test_without_requirements_the_kernels_interpreter_is_used(tmp_path: Path) -> None:
    backend = LocalBackend(tmp_path, tmp_path)
    manifest = {"interpreter": "/some/python", "python": "3.11"}
    for options in ({}, {"requirements": None}, {"requirements": []}):
        built = await backend.build(BuildOrder(manifest, options, tmp_path), silent)
        assert built == {"python": "/some/python", "libraries": ""}
    await backend.close()


async def test_a_state_folder_with_a_long_path_serves(tmp_path: Path) -> None:
    state = tmp_path / ("s" * 200)
    state.mkdir()
    gateway = open_gateway(state)
    fleet = await deployed(gateway, "def f(): return 1")
    (runner,) = fleet.runners.values()
    path = runner.row.address.removeprefix("unix:")
    assert len(path.encode()) < 104
    assert os.stat(os.path.dirname(path)).st_mode & 0o777 == 0o700
    await close_gateway(gateway)


def test_a_long_temporary_folder_does_not_make_socket_paths_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("t" * 150)
    long.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    store = Store(tmp_path / "store.db")
    folder = sockets_folder(store)
    store.close()
    assert len(f"{folder}/123456789012.sock") < 104
    folder.rmdir()


# --- a gateway process that is killed ------------------------------------------------------------
@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    found = discovery.find(tmp_path)
    if found is not None:
        _ask(found, "POST", "/api/gateway/stop")
        discovery.wait_until_gone(tmp_path)


def _ask(info: discovery.GatewayInfo, method: str, path: str, **request: Any) -> Any:
    headers = {"Authorization": f"Bearer {info.token}"}
    reply = httpx.request(method, info.url + path, headers=headers, timeout=30, **request)
    assert reply.is_success, reply.text
    return reply.json()


def _deploy(info: discovery.GatewayInfo, source: str, eventually: Any, **options: Any) -> None:
    import hashlib

    content = payload(source)
    digest = hashlib.sha256(content).hexdigest()
    _ask(info, "PUT", f"/api/blobs/{digest}", content=content)
    body = {
        "name": "app", "digest": digest, "payload": digest, "options": options, "notebook": "n",
        "manifest": {"python": "{}.{}".format(*sys.version_info), "interpreter": sys.executable},
    }  # fmt: skip
    _ask(info, "POST", "/api/apps/tester", json=body)
    eventually(lambda: not any(app["deploying"] for app in _ask(info, "GET", "/api/apps")))


def _call(info: discovery.GatewayInfo) -> Any:
    return _ask(info, "POST", "/run/tester/app", json={})


CHILD = """
import os, subprocess
def setup(): return subprocess.Popen(["sleep", "1000"], start_new_session=True, env={}).pid
def f(child): return [os.getpid(), child]
"""


def test_runners_of_a_killed_gateway_end_by_themselves_with_their_children(
    state: Path, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAL_NOTEBOOK_ORPHAN_TIMEOUT", "1")
    info = discovery.ensure(state)
    _deploy(info, CHILD, eventually)
    pids = _call(info)
    family = [psutil.Process(pid) for pid in pids]
    os.kill(info.pid, 9)
    assert family[0].is_running()
    eventually(lambda: not any(_lives(process) for process in family))
    eventually(lambda: not _processes(state))


def test_a_gateway_started_again_adopts_the_runner_and_logs_no_noise(
    state: Path, eventually: Any
) -> None:
    info = discovery.ensure(state)
    _deploy(info, CHILD, eventually, keep_alive=60)
    before = _call(info)
    os.kill(info.pid, 9)
    eventually(lambda: not _running(info.pid))
    again = discovery.ensure(state)
    assert _call(again) == before
    _ask(again, "POST", "/api/gateway/stop")
    discovery.wait_until_gone(state)
    eventually(lambda: not _processes(state))
    assert (state / "gateway.log").read_text() == ""
    store = Store(state / "store.db")
    assert {row.state for row in store.select(RunnerRow)} == {"TERMINATED"}
    store.close()


def test_a_gateway_without_an_app_sleeps(state: Path, eventually: Any) -> None:
    info = discovery.ensure(state)
    process = psutil.Process(info.pid)
    eventually(lambda: len(process.children()) == 1)  # its zygote has been started

    def rests() -> bool:
        before = process.num_ctx_switches().voluntary
        subprocess.run(["sleep", "0.5"], check=True)
        return process.num_ctx_switches().voluntary - before < 12

    eventually(rests)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _running(pid: int) -> bool:
    return psutil.pid_exists(pid) and _lives(psutil.Process(pid))


def _processes(state: Path) -> list[psutil.Process]:
    """Return what still runs of a gateway: itself, its zygotes, keepers and runners."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(state) in " ".join(process.cmdline()) and _lives(process):
                found.append(process)
        except psutil.Error:
            continue
    return found
