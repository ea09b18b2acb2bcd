"""What callers of ``/run`` see of runners that fail, are too slow or are deleted."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from serving import Wire, control, deployed, in_flight, post, run_url, with_key

from fal_notebook.discovery import GatewayInfo


def test_why_runners_fail_to_start_is_told_to_the_owner_only(
    gateway: GatewayInfo, tmp_path: Path, eventually: Any
) -> None:
    def setup() -> None:
        if os.path.exists(broken):
            raise RuntimeError("the password is hunter2")

    broken = str(tmp_path / "broken")
    source = "def failing() -> int:\n    return 1\n"
    options = {"serve": True, "auth": "public", "keep_alive": 0, "setup_function": setup}
    with control(gateway) as owner, deployed(source, **options) as handle:
        key = owner.post("/api/keys").json()
        admin = owner.post("/api/keys", params={"scope": "ADMIN"}).json()
        assert handle() == 1
        Path(broken).touch()
        eventually(lambda: not handle.runners())
        url = run_url(gateway, handle)
        for _ in range(2):  # the failing start itself, and the time after
            for headers in ({}, with_key(key["key"])):
                answer = httpx.post(url, json={}, headers=headers, timeout=20)
                detail = "the app's runners fail to start; %fal status tells its owner why"
                assert (answer.status_code, answer.json()["detail"]) == (503, detail)
        for headers in (dict(owner.headers), with_key(admin["key"])):
            assert "hunter2" in httpx.post(url, json={}, headers=headers, timeout=20).text
        for made in (key, admin):
            owner.delete(f"/api/keys/{made['id']}")


def test_a_runner_that_dies_is_503_and_the_next_request_is_served_by_a_new_one(
    gateway: GatewayInfo, act: str
) -> None:
    for _ in range(3):
        answer = httpx.post(act, json={"do": "exit"})
        assert (answer.status_code, answer.json()["error_type"]) == (503, "runner_disconnected")
        assert answer.headers["x-fal-error-type"] == "runner_disconnected"
        assert httpx.post(act, json={"n": 1}, timeout=20).json() == 1


def test_a_runner_that_dies_in_its_answer_cuts_the_connection(gateway: GatewayInfo) -> None:
    source = "import os\ndef dies():\n    yield 1\n    os._exit(1)\n"
    with (
        deployed(source, serve=True, auth="public") as handle,
        httpx.stream("POST", run_url(gateway, handle), json={}) as answer,
        pytest.raises(httpx.RemoteProtocolError),
    ):
        answer.read()


def test_a_request_that_takes_too_long_is_504_and_its_runner_is_replaced(
    gateway: GatewayInfo,
) -> None:
    source = (
        "import os, time\ndef late(x: float) -> int:\n    time.sleep(x)\n    return os.getpid()\n"
    )
    options = {"request_timeout": 1, "max_concurrency": 1}
    with deployed(source, serve=True, auth="public", **options) as handle:
        url = run_url(gateway, handle)
        first = httpx.post(url, json={"x": 0}).json()
        answer = httpx.post(url, json={"x": 60})
        assert (answer.status_code, answer.headers["x-fal-error-type"]) == (504, "request_timeout")
        assert httpx.post(url, json={"x": 0}, timeout=20).json() != first
        assert not psutil.pid_exists(first)


def test_a_direct_request_begins_in_time_or_not_at_all(
    gateway: GatewayInfo, tmp_path: Path, eventually: Any
) -> None:
    end = tmp_path / "end"
    source = f"""
import os, time
def held(path: str = {str(end)!r}) -> None:
    while not os.path.exists(path): time.sleep(0.01)
"""
    options = {"request_start_timeout": 2, "max_concurrency": 1}
    with (
        deployed(source, serve=True, auth="public", **options) as handle,
        control(gateway) as owner,
        ThreadPoolExecutor() as pool,
    ):
        url = run_url(gateway, handle)
        first = pool.submit(httpx.post, url, json={}, timeout=60)
        eventually(lambda: in_flight(gateway, "held") == 1)
        asked = [
            pool.submit(httpx.post, url, json={}, headers={"x-fal-request-timeout": "1.1"}),
            pool.submit(owner.post, url, json={}),
        ]
        queued = owner.post(f"/queue/{handle.owner}/{handle.name}", json={}).json()
        eventually(lambda: owner.get(queued["status_url"]).status_code == 200)
        answers = [*(future.result() for future in asked), owner.get(queued["response_url"])]
        causes = ("its x-fal-request-timeout", *["the app's request_start_timeout"] * 2)
        for answer, cause in zip(answers, causes, strict=True):
            told = answer.status_code, answer.headers["x-fal-error-type"]
            assert told == (504, "request_timeout")
            assert answer.headers["x-fal-request-timeout-type"] == "user"
            assert answer.json()["detail"] == f"the request did not begin within {cause}"
        end.touch()
        assert first.result().status_code == 200
        wrong = httpx.post(url, json={}, headers={"x-fal-request-timeout": "soon"})
        assert wrong.status_code == 422


SLOW = """
import os
from fastapi import Response
def slow(x: int = 0, text: str = "") -> Response:
    return Response(b"x" * x if x else str(os.getpid()).encode())
"""


def test_a_caller_that_is_too_slow_is_not_the_runners_fault(
    gateway: GatewayInfo, eventually: Any
) -> None:
    with deployed(SLOW, serve=True, auth="public", request_timeout=1, max_concurrency=1) as app:
        url = run_url(gateway, app)
        first = httpx.post(url, json={}).text
        with Wire(gateway) as sending:
            head = "POST /run/tester/slow HTTP/1.1\nHost: GATEWAY\nContent-Length: 999999\n\n"
            sending.send(head).send(b" " * 100_000)
            assert sending.response()[0] == 408
        with Wire(gateway) as reading:
            reading.send(post("/run/tester/slow", {"x": 50_000_000}))
            assert reading.head()[0] == 200
            eventually(lambda: in_flight(gateway, "slow") == 0, timeout=5)
            assert len(reading.rest()) < 50_000_000
        assert httpx.post(url, json={}).text == first


def test_an_app_that_answers_503_gets_a_new_runner(gateway: GatewayInfo, act: str) -> None:
    first = httpx.post(act, json={"do": "pid"}).json()
    answer = httpx.post(act, json={"do": "status", "n": 503})
    assert (answer.status_code, answer.json()) == (503, {"detail": "as asked"})
    assert httpx.post(act, json={"do": "pid"}, timeout=20).json() != first


@pytest.mark.parametrize("status", [400, 418, 500, 502, 504])
def test_other_errors_of_an_app_pass_and_keep_the_runner(act: str, status: int) -> None:
    first = httpx.post(act, json={"do": "pid"}).json()
    assert httpx.post(act, json={"do": "status", "n": status}).status_code == status
    assert httpx.post(act, json={"do": "pid"}).json() == first


def test_a_deleted_app_refuses_who_waits_and_starts_nothing(
    gateway: GatewayInfo, eventually: Any
) -> None:
    source = "import time\ndef doomed(x: float) -> float:\n    time.sleep(x)\n    return x\n"
    with control(gateway) as client:
        options = {"max_concurrency": 1, "min_concurrency": 1}
        with deployed(source, serve=True, auth="public", **options), Wire(gateway) as first:
            first.send(post("/run/tester/doomed", {"x": 1}))
            eventually(lambda: in_flight(gateway, "doomed") == 1)
            with Wire(gateway) as second:
                second.send(post("/run/tester/doomed", {"x": 0}))
                eventually(lambda: client.get("/api/apps/tester/doomed").json()["queued"] == 1)
                client.delete("/api/apps/tester/doomed")
                assert second.response()[0] == 404
            assert first.response()[2] == b"1.0"  # what runs may end
            eventually(lambda: not _runners_of("tester/doomed"))
            assert client.get("/api/apps/tester/doomed").status_code == 404
            with deployed(source):
                pass  # the name is free again


def _runners_of(app: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("FAL_APP_ID") == app:
                found.append(process)
        except psutil.Error:
            continue
    return found
