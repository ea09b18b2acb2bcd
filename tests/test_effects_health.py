"""What health_check does: ready runners that are not well are found, ended and replaced."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from effects import effect_of, given
from runner_bench import define, notebook
from serving import ACT, control, deployed, events, eventually, run_url

import fal_notebook as fal
from fal_notebook.discovery import GatewayInfo
from fal_notebook.exceptions import DeployError, NotFoundError
from fal_notebook.handle import Handle

AT_ONCE = {"start_period_seconds": 0, "failure_threshold": 1, "timeout_seconds": 1}
FORCED = {**AT_ONCE, "call_regularly": False}

APP = """
import os, time
import fal_notebook as fal
from fastapi import HTTPException, Response
from typing import Annotated

class Patient(fal.App):
    def setup(self):
        self.asked = 0

    @fal.endpoint("/ask")
    def ask(self, sick: str = "", seconds: float = 0, forced: str = "1") -> dict:
        if sick:
            open(sick, "w").close()
        time.sleep(seconds)
        header = {"x-fal-runner-health-check": forced}
        return Response(f'{{"pid": {os.getpid()}, "asked": {self.asked}}}', headers=header)

    @fal.endpoint("/well", health_check=fal.HealthCheck(**CHECK))
    def well(self) -> str:
        self.asked += 1
        if os.path.exists(FILE):
            raise HTTPException(500, "not well")
        return "well"
"""
SERVER = """
import http.server, os

class Own(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        sick = os.path.exists(FILE)
        self.send_response(500 if sick and self.path == "/up" else 200)
        self.send_header("x-fal-runner-health-check", "1")
        self.end_headers()
        self.wfile.write(str(self.headers).encode())

def serves(port: int) -> None:
    http.server.ThreadingHTTPServer(("127.0.0.1", port), Own).serve_forever()
"""


@contextmanager
def patient(
    sick: Path, check: dict[str, Any], parameter: str = "", **options: Any
) -> Iterator[Any]:
    """Deploy an app that is not well while the file is there."""
    source = APP.replace("CHECK", repr(check)).replace("FILE", repr(str(sick)))
    source = source.replace("ask(self, ", f"ask(self, {parameter}")
    with notebook():
        handle: Any = fal.deploy(define(source)["Patient"], wait=True, **options)
        try:
            yield handle
        finally:
            with suppress(NotFoundError):
                handle.delete()


def idle(handle: Handle, but: str = "") -> str:
    """Return a runner that is ready, other than one."""
    found = [r["id"] for r in handle.runners() if r["state"] == "IDLE" and r["id"] != but]
    return found[0] if found else ""


def ends(state: Path, app: str) -> list[str]:
    told = events(state, app, "runner")
    return [data["cause"] for data in told if data["state"] == "TERMINATED"]


@effect_of("health_check")
def test_a_runner_that_is_stuck_is_replaced(gateway: GatewayInfo, private_state: Path) -> None:
    check = {"path": "/health", **AT_ONCE}
    with deployed(ACT, **given(health_check=check), min_concurrency=1) as act:
        stuck = idle(act)
        os.kill(act(do="pid"), signal.SIGSTOP)
        eventually(lambda: idle(act, but=stuck), timeout=40)
        assert act(do="echo", n=2) == 2
        said = "its health check GET /health had no answer in timeout_seconds=1"
        eventually(lambda: ends(private_state, "act")[-1:] == [said])


def test_an_answer_forces_a_check_and_a_runner_that_is_unwell_finishes_what_it_has(
    gateway: GatewayInfo, private_state: Path, tmp_path: Path
) -> None:
    sick = tmp_path / "sick"
    scaling = {"max_multiplexing": 2, "min_concurrency": 1, "max_concurrency": 1}
    with (
        patient(sick, FORCED, **scaling) as app,
        control(gateway) as client,
        ThreadPoolExecutor() as pool,
    ):
        before, url = idle(app), f"{run_url(gateway, app)}/ask"
        long = pool.submit(client.post, url, json={"seconds": 2, "forced": "0"})
        eventually(lambda: app.runners()[0]["in_flight"])
        client.post(url, json={"sick": str(sick)})
        assert long.result().status_code == 200
        sick.unlink()
        assert eventually(lambda: idle(app, but=before))
        said = "its health check POST /well answers 500"
        eventually(lambda: ends(private_state, "patient")[-1:] == [said])


def test_a_check_is_not_asked_for_by_callers_and_not_shown_to_them(
    gateway: GatewayInfo, tmp_path: Path
) -> None:
    with patient(tmp_path / "sick", FORCED, min_concurrency=1) as app, control(gateway) as client:
        url, header = f"{run_url(gateway, app)}/ask", {"x-fal-runner-health-check": "1"}
        reply = client.post(url, json={"forced": "0"}, headers=header)
        assert "x-fal-runner-health-check" not in reply.headers
        assert client.post(url, json={"forced": "0"}).json()["asked"] == 1  # at its start


@pytest.mark.parametrize("more", ["", "response: Response, "])
def test_an_answer_to_a_call_of_the_handle_forces_a_check_too(tmp_path: Path, more: str) -> None:
    sick = tmp_path / "sick"
    with patient(sick, FORCED, more, min_concurrency=1) as app:
        before = idle(app)
        app.ask(sick=str(sick))
        eventually(lambda: not idle(app))
        sick.unlink()
        assert eventually(lambda: idle(app, but=before))


def test_a_server_of_ones_own_is_asked_too(gateway: GatewayInfo, tmp_path: Path) -> None:
    sick = tmp_path / "sick"
    source = SERVER.replace("FILE", repr(str(sick)))
    options = {"exposed_port": 8123, "auth": "public", "min_concurrency": 1}
    with deployed(source, health_check={"path": "/up", **FORCED}, **options) as serves:
        before = idle(serves)
        sick.touch()
        assert "secret" not in httpx.get(run_url(gateway, serves)).text.lower()
        eventually(lambda: idle(serves, but=before) or _healed(sick, serves, before))


def _healed(sick: Path, handle: Handle, before: str) -> bool:
    """Let the next runner pass its first check once the other is ending."""
    if any(r["id"] == before and r["state"] == "IDLE" for r in handle.runners()):
        return False
    sick.unlink(missing_ok=True)
    return False


def test_a_runner_is_idle_only_once_it_has_passed(gateway: GatewayInfo, tmp_path: Path) -> None:
    sick = tmp_path / "sick"
    sick.touch()
    source = SERVER.replace("FILE", repr(str(sick)))
    check = {"path": "/up", **AT_ONCE}
    with ThreadPoolExecutor() as pool:
        deploying = pool.submit(_deployed_once, source, exposed_port=8123, health_check=check)
        with control(gateway) as client:
            url = "/api/apps/tester/serves"
            eventually(lambda: "GET /up answers 500" in client.get(url).json().get("step", ""))
            assert [r["state"] for r in client.get(f"{url}/runners").json()] == ["SETUP"]
        sick.unlink()
        assert deploying.result() == ["IDLE"]


def _deployed_once(source: str, **options: Any) -> list[str]:
    with deployed(source, **options) as handle:
        return [runner["state"] for runner in handle.runners()]


def test_a_path_that_no_app_serves_fails_the_deploy_at_once() -> None:
    with pytest.raises(DeployError, match="its health check GET /nope answers 404; serve that"):
        _deployed_once(ACT, health_check={"path": "/nope"})


def test_a_check_that_never_passes_is_named_when_the_time_for_the_start_is_up(
    tmp_path: Path,
) -> None:
    source = SERVER.replace("FILE", repr(str(tmp_path)))
    check = {"path": "/up", **AT_ONCE}
    with pytest.raises(DeployError, match="startup_timeout=2 s: its health check GET /up answers"):
        _deployed_once(source, exposed_port=8123, health_check=check, startup_timeout=2)


def test_what_is_raised_at_each_check_is_shown_once(private_state: Path, tmp_path: Path) -> None:
    (tmp_path / "sick").touch()
    source = APP.replace("HTTPException(500, ", "ValueError(").replace("CHECK", repr(AT_ONCE))
    source = source.replace("FILE", repr(str(tmp_path / "sick")))
    with notebook(), pytest.raises(DeployError, match="POST /well answers 500"):
        fal.deploy(define(source)["Patient"], wait=True, startup_timeout=2)
    log = events(private_state, "patient", "deploy")[-1]["log"]
    assert [line for line in log if line.startswith(("Traceback", "ValueError"))] == [
        "Traceback (most recent call last):",
        "ValueError: not well",
    ]
