"""The machine's clock is set anew under a gateway: nothing ends early, nothing waits for hours."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from gateway_processes import deploy, stop
from serving import control, eventually

from fal_notebook import discovery
from fal_notebook.discovery import GatewayInfo
from fal_notebook.gateway import clock

WORK = "import os, time\ndef who(x: float = 0) -> int:\n    time.sleep(x)\n    return os.getpid()\n"
# The clock of a gateway's process: the machine's own, and what a file says.
SITE = """
import pathlib, time
import psutil, psutil._pslinux
file, real, boot = pathlib.Path(FILE), time.time, psutil._pslinux.boot_time
def ahead():
    return float(file.read_text() or 0)
time.time = lambda: real() + ahead()
time.time_ns = lambda: int(time.time() * 1e9)
psutil._pslinux.boot_time = lambda: boot() + ahead()
"""


@dataclass
class Machine:
    """A state folder whose gateways see a clock that the test sets."""

    folder: Path
    ahead: Path
    gateway: GatewayInfo | None = None
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def set_clock(self, seconds: float) -> None:
        """Set the clock this far ahead of what it was first."""
        new = self.ahead.with_suffix(".new")
        new.write_text(str(seconds))
        new.replace(self.ahead)

    def start(self) -> GatewayInfo:
        """Start a gateway."""
        environment = {**os.environ, "PYTHONPATH": str(self.ahead.parent)}
        command = [sys.executable, "-m", "fal_notebook.gateway"]
        with (self.folder / "gateway.log").open("ab") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        self.processes.append(process)
        self.gateway = eventually(lambda: discovery.find(self.folder))
        assert self.gateway is not None
        return self.gateway


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    site, folder = tmp_path / "site", tmp_path / "state"
    for path in (site, folder):
        path.mkdir()
    ahead = site / "ahead"
    (site / "sitecustomize.py").write_text(f"FILE = {str(ahead)!r}{SITE}")
    monkeypatch.setenv("FAL_NOTEBOOK_STATE", str(folder))
    machine = Machine(folder, ahead)
    machine.set_clock(0)
    yield machine
    if machine.gateway is not None:
        stop(machine.gateway, folder)
    for process in machine.processes:
        process.wait()


def submit(gateway: GatewayInfo, x: float, **headers: str) -> str:
    url = f"{gateway.url}/queue/tester/who"
    return str(httpx.post(url, json={"x": x}, headers=headers).json()["response_url"])


def finished(url: str) -> httpx.Response:
    eventually(lambda: httpx.get(f"{url}/status").status_code == 200)
    return httpx.get(url)


def test_requests_files_and_runners_outlive_each_jump(machine: Machine) -> None:
    gateway = machine.start()
    deploy(gateway, WORK, max_concurrency=1, keep_alive=1800)
    first = finished(submit(gateway, 0)).json()
    with control(gateway) as api:
        lifetime = {"x-fal-object-lifecycle": '{"expiration_duration_seconds": 600}'}
        file = api.post("/storage/files", content=b"kept", headers=lifetime).json()["url"]
        for jump in (3600.0, -3600.0):
            busy = submit(gateway, 1)
            patient = submit(gateway, 0, **{"x-fal-request-timeout": "600"})
            machine.set_clock(jump)
            assert finished(busy).json() == finished(patient).json() == first
            busy = submit(gateway, 2)
            late = submit(gateway, 0, **{"x-fal-request-timeout": "1.1"})
            assert finished(late).status_code == 504  # after its second, not after an hour
            assert finished(busy).json() == first
            assert httpx.get(file).content == b"kept"
            assert [r["state"] for r in api.get("/api/apps/tester/who/runners").json()] == ["IDLE"]
    stop(gateway, machine.folder, keep_runners=True)
    machine.set_clock(1800.0)
    gateway = machine.start()
    assert finished(submit(gateway, 0)).json() == first  # the next one adopts it
    with control(gateway) as api:
        assert api.delete("/api/apps/tester/who").is_success
    eventually(lambda: not Path(f"/proc/{first}").exists())


@pytest.mark.parametrize("jump", [1e6, -1e6])
def test_nothing_is_older_than_by_both_clocks(monkeypatch: Any, jump: float) -> None:
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + jump)
    assert clock.ago(10) == pytest.approx(real() - 10 + min(jump, 0), abs=5)
    assert clock.now() == pytest.approx(real(), abs=5)
