"""What callers of ``/queue`` are promised; a real gateway with real runners."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import Wire, control, deployed, eventually, post, with_key

from fal_notebook.discovery import GatewayInfo
from fal_notebook.handle import Handle

Eventually = Callable[..., Any]

# `count` appends a line to a file, so that a test sees every run of the function.
ACT = """
import os, sys, time, pathlib
from typing import Any
from fastapi import HTTPException, Response

def act(do: str = "echo", n: float = 0, text: str = "", path: str = "", extra: dict = {}) -> Any:
    if path:
        with open(path, "a") as file:
            file.write(f"{os.getpid()} {do} {n}\\n")
        runs = len(pathlib.Path(path).read_text().splitlines())
        if runs > n and do in ("kill", "fail", "hang"):
            return runs
    if do == "print":
        print("first"); print("second", file=sys.stderr)
    if do == "kill":
        os.kill(os.getpid(), 9)
    if do == "hang":
        time.sleep(30)
    if do == "sleep":
        time.sleep(n)
    if do == "wait":
        print("waits"); print("waits")
        while not os.path.exists(text): time.sleep(0.01)
        print("goes on")
    if do == "size":
        return len(text)
    if do == "big":
        return Response(b"x" * int(n), media_type="application/octet-stream", headers=extra)
    if do == "fail":
        return Response(b"no", int(text), headers=extra)
    if do == "status":
        raise HTTPException(int(n), "as asked", headers=extra)
    return n
"""


class Client(httpx.Client):
    """Talks to one app's queue."""

    def __init__(self, gateway: GatewayInfo, handle: Handle, **options: Any) -> None:
        base = f"{gateway.url}/queue/{handle.owner}/{handle.name}"
        super().__init__(base_url=base, timeout=30, trust_env=False, **options)

    def submit(self, params: Any = None, headers: Any = None, **body: Any) -> str:
        reply = self.post("", json=body, params=params, headers=headers)
        assert reply.status_code == 200, reply.text
        return str(reply.json()["request_id"])

    def status(self, request: str, **params: Any) -> httpx.Response:
        return self.get(f"/requests/{request}/status", params=params)

    def state(self, request: str) -> dict[str, Any]:
        found: dict[str, Any] = self.status(request).json()
        return found

    def finish(self, request: str, timeout: float = 20.0) -> httpx.Response:
        """Return the answer when the request is completed."""
        eventually(lambda: self.status(request).status_code != 202, timeout)
        return self.get(f"/requests/{request}")

    def cancel(self, request: str) -> httpx.Response:
        return self.put(f"/requests/{request}/cancel")


@pytest.fixture(scope="module")
def act(gateway: GatewayInfo) -> Iterator[Client]:
    """A public app with one runner that works on one request at a time."""
    options = {"max_concurrency": 1, "min_concurrency": 1, "keep_alive": 60}
    with (
        deployed(ACT, serve=True, auth="public", **options) as handle,
        Client(gateway, handle) as client,
    ):
        yield client


class Gate:
    """Holds the one runner of `act` until it is opened."""

    def __init__(self, client: Client, path: Path) -> None:
        self._client = client
        self._path = path

    def __enter__(self) -> Gate:
        self.request = self._client.submit(do="wait", text=str(self._path))
        eventually(lambda: self._client.state(self.request)["status"] == "IN_PROGRESS")
        return self

    def __exit__(self, *_: object) -> None:
        self._path.touch()
        self._client.finish(self.request)


@pytest.fixture
def gate(act: Client, tmp_path: Path) -> Gate:
    return Gate(act, tmp_path / "open")


def runs(path: Path) -> list[str]:
    """Return the process id of each run of the function, in order."""
    return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []


# --- submit, status, result -------------------------------------------------------------------
@pytest.mark.parametrize("slash", ["", "/"])
def test_submit_status_and_result(gateway: GatewayInfo, act: Client, slash: str) -> None:
    reply = httpx.post(f"{act.base_url}".rstrip("/") + slash, json={"n": 3})
    told = reply.json()
    assert reply.status_code == 200
    assert reply.headers["x-fal-request-id"] == told["request_id"]
    assert (told["status"], told["queue_position"]) == ("IN_QUEUE", 0)
    url = f"{gateway.url}/queue/tester/act/requests/{told['request_id']}"
    assert told["response_url"] == url
    assert told["status_url"] == f"{url}/status"
    assert told["cancel_url"] == f"{url}/cancel"
    assert act.finish(told["request_id"]).json() == 3
    done = httpx.get(told["status_url"] + slash)
    assert done.status_code == 200
    assert done.json()["status"] == "COMPLETED"
    assert done.json()["logs"] is None
    assert done.json()["metrics"]["inference_time"] >= 0
    assert "error" not in done.json()
    result = httpx.get(url + slash)
    assert (result.status_code, result.json()) == (200, 3)
    assert result.headers["x-fal-request-id"] == told["request_id"]


def test_urls_are_on_the_base_that_the_caller_used(act: Client) -> None:
    port = act.base_url.port
    reply = httpx.post(f"http://localhost:{port}/queue/tester/act?a=b", json={})
    assert reply.json()["status_url"].startswith(f"http://localhost:{port}/queue/tester/act/req")


def test_status_is_202_while_it_waits_and_runs(act: Client, gate: Gate) -> None:
    with gate:
        waiting = act.submit(n=1)
        running = act.status(gate.request)
        assert running.status_code == 202
        assert running.json()["status"] == "IN_PROGRESS"
        assert running.json()["logs"] is None
        behind = act.status(waiting)
        assert behind.status_code == 202
        assert behind.json()["status"] == "IN_QUEUE"
        assert behind.json()["queue_position"] == 0
        early = act.get(f"/requests/{waiting}")
        assert (early.status_code, early.json()["status"]) == (400, "IN_QUEUE")
        assert early.json()["error_type"] == early.headers["x-fal-error-type"] == "bad_request"
        assert "IN_PROGRESS" in act.get(f"/requests/{gate.request}").text
    assert act.finish(waiting).json() == 1


@pytest.mark.parametrize("flag", ["1", "true"])
def test_status_tells_the_lines_that_the_request_wrote(act: Client, flag: str) -> None:
    other, request = act.submit(do="print"), act.submit(do="print")
    act.finish(other)
    act.finish(request)
    logs = act.status(request, logs=flag).json()["logs"]
    assert [item["message"] for item in logs] == ["first", "second"]
    for item in logs:
        assert item.keys() == {"message", "level", "source", "timestamp"}
        assert item["source"] == "USER"
        assert datetime.fromisoformat(item["timestamp"]).utcoffset() == timedelta(0)
    assert act.status(request, logs="0").json()["logs"] is None
    for path in ("status", "status/stream"):
        answer = act.get(f"/requests/{request}/{path}", params={"logs": "maybe"})
        assert (answer.status_code, "logs='maybe'" in answer.text) == (422, True)


def events(reply: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in reply.iter_lines():
        if line.startswith("data: "):
            yield json.loads(line[6:])


@pytest.mark.parametrize("slash", ["", "/"])
def test_the_status_stream_ends_at_completed(act: Client, gate: Gate, slash: str) -> None:
    seen = []
    with gate:
        request = act.submit(n=1)
        with act.stream("GET", f"/requests/{request}/status/stream{slash}") as reply:
            assert reply.headers["content-type"].startswith("text/event-stream")
            for event in events(reply):
                seen.append(event["status"])
                if len(seen) == 1:
                    gate._path.touch()
    assert seen[0] == "IN_QUEUE"
    assert seen[-1] == "COMPLETED"
    assert seen == sorted(seen, key=["IN_QUEUE", "IN_PROGRESS", "COMPLETED"].index)
    with act.stream("GET", f"/requests/{request}/status/stream") as reply:
        assert [event["status"] for event in events(reply)] == ["COMPLETED"]


def test_the_events_of_a_stream_tell_each_line_once(act: Client, tmp_path: Path) -> None:
    request, told = act.submit(do="wait", text=str(tmp_path / "open")), []
    with act.stream("GET", f"/requests/{request}/status/stream", params={"logs": 1}) as reply:
        for event in events(reply):
            told += [item["message"] for item in event["logs"] or ()]
            if told == ["waits", "waits"]:
                (tmp_path / "open").touch()
    assert told == ["waits", "waits", "goes on"]


def test_a_stream_that_is_left_disturbs_nobody(act: Client, gate: Gate) -> None:
    with gate:
        with act.stream("GET", f"/requests/{gate.request}/status/stream") as reply:
            assert next(events(reply))["status"] == "IN_PROGRESS"
        assert act.state(gate.request)["status"] == "IN_PROGRESS"


def test_the_result_is_the_apps_own_answer(act: Client) -> None:
    for n in (400, 404, 422, 418, 500, 502):
        request = act.submit(do="status", n=n, extra={"x-mine": "yes"})
        answer = act.finish(request)
        assert (answer.status_code, answer.json()) == (n, {"detail": "as asked"})
        assert answer.headers["x-mine"] == "yes"
        told = act.status(request)
        assert told.status_code == 200
        assert (told.json()["status"], str(n) in told.json()["error"]) == ("COMPLETED", True)
    answer = act.finish(act.submit(do="fail", n=1e9, text="204"))
    assert (answer.status_code, answer.content) == (204, b"")
    assert act.finish(act.submit(n="x")).status_code == 422


def test_the_path_and_query_reach_the_app_without_what_is_the_queues(act: Client) -> None:
    reply = act.post("/some/where?fal_max_queue_length=9&x=1", json={})
    answer = act.finish(reply.json()["request_id"])
    assert (answer.status_code, answer.json()) == (404, {"detail": "Path /some/where not found"})


def test_five_megabytes_each_way(act: Client) -> None:
    size = 5_000_000
    assert act.finish(act.submit(do="size", text="x" * size)).json() == size
    answer = act.finish(act.submit(do="big", n=size, extra={"x-mine": "yes"}))
    assert answer.content == b"x" * size
    assert answer.headers["x-mine"] == "yes"
    assert answer.headers["content-length"] == str(size)
    assert answer.headers["content-type"] == "application/octet-stream"


def test_a_chunked_body_is_taken(act: Client) -> None:
    for size in (10, 3_000_000):
        body = json.dumps({"do": "size", "text": "y" * size}).encode()
        parts = (body[n : n + 70_000] for n in range(0, len(body), 70_000))
        reply = act.post("", content=parts, headers={"content-type": "application/json"})
        assert act.finish(reply.json()["request_id"]).json() == size


# --- bad input --------------------------------------------------------------------------------
def test_what_is_not_there_is_404(gateway: GatewayInfo, act: Client) -> None:
    for path in ("", "/", "/status", "/status/stream", "/status/", "/cancel"):
        for request in ("0" * 32, "nothing", "..", "0" * 65, "A" * 32):
            method = "PUT" if path == "/cancel" else "GET"
            answer = act.request(method, f"/requests/{request}{path}")
            assert answer.status_code in (404, 405), (path, request)
    assert act.get("/requests/" + "0" * 32).status_code == 404
    for request in ("0" * 32, "nothing"):
        told = act.cancel(request)
        assert (told.status_code, told.json()["status"]) == (404, "NOT_FOUND")
        assert (told.json()["detail"], told.json()["error_type"]) == (
            "no such request",
            "bad_request",
        )
    assert httpx.post(f"{gateway.url}/queue/tester/nobody", json={}).status_code == 404
    assert httpx.post(f"{gateway.url}/queue/tester", json={}).status_code == 404
    assert act.get("").status_code == 405
    request = act.submit()
    assert act.post(f"/requests/{request}/cancel").status_code == 405
    act.finish(request)


def test_a_request_of_another_app_is_not_found(gateway: GatewayInfo, act: Client) -> None:
    request = act.submit()
    act.finish(request)
    source = "def other() -> int:\n    return 1\n"
    with deployed(source, serve=True, auth="public") as handle, Client(gateway, handle) as other:
        assert other.status(request).status_code == 404
        assert other.get(f"/requests/{request}").status_code == 404
        assert other.cancel(request).status_code == 404


def test_a_body_above_the_limit_is_413_and_leaves_no_file(
    gateway: GatewayInfo, act: Client, private_state: Path
) -> None:
    before = set((private_state / "queue").glob("*"))
    with Wire(gateway) as wire:
        head = "POST /queue/tester/act HTTP/1.1\nHost: GATEWAY\nContent-Length: 104857601\n\n"
        assert wire.send(head).head()[0] == 413
    with Wire(gateway) as wire:  # it goes away in the middle
        head = "POST /queue/tester/act HTTP/1.1\nHost: GATEWAY\nContent-Length: 1000000\n\n"
        wire.send(head).send(b"x" * 500_000)
        eventually(lambda: set((private_state / "queue").glob("*")) != before)
    eventually(lambda: set((private_state / "queue").glob("*")) == before)


@pytest.mark.parametrize(
    ("headers", "params"),
    [
        ({"x-fal-queue-priority": "high"}, {}),
        ({"x-fal-request-timeout": "soon"}, {}),
        ({"x-fal-request-timeout": "1"}, {}),
        ({"x-fal-request-timeout": "-5"}, {}),
        ({"x-fal-request-timeout": "nan"}, {}),
        ({"x-fal-request-timeout": "inf"}, {}),
        ({"x-fal-request-timeout": "1e300"}, {}),
        ({"x-fal-request-timeout": "1_0"}, {}),
        ({"x-fal-no-retry": "2"}, {}),
        ({"x-fal-no-retry": "maybe"}, {}),
        ({}, {"fal_max_queue_length": "-1"}),
        ({}, {"fal_max_queue_length": "many"}),
        ({}, {"fal_max_queue_length": "9" * 5000}),
        ({}, {"fal_webhook": "ftp://example.com"}),
        ({}, {"fal_webhook": "http://127.0.0.1:1/"}),
        ({}, {"fal_webhook": ""}),
    ],
)
def test_what_is_malformed_is_422(act: Client, headers: Any, params: Any) -> None:
    answer = act.post("", json={}, headers=headers, params=params)
    assert answer.status_code == 422
    assert isinstance(answer.json()["detail"], str)


@pytest.mark.parametrize(
    ("name", "one", "two"),
    [
        ("x-fal-submit-id", "1" * 32, "2" * 32),
        ("x-fal-queue-priority", "low", "normal"),
        ("x-fal-no-retry", "1", "0"),
        ("x-fal-request-timeout", "20", "30"),
    ],
)
def test_a_header_that_says_two_things_is_400(act: Client, name: str, one: str, two: str) -> None:
    reply = act.post("", json={}, headers=[(name, one), (name, two)])
    assert (reply.status_code, reply.json()["detail"]) == (400, f"the header {name} occurs twice")


@pytest.mark.parametrize("name", ["fal_webhook", "fal_max_queue_length"])
def test_a_query_that_says_two_things_is_422(act: Client, name: str) -> None:
    reply = act.post("", json={}, params=[(name, "http://example.com/1"), (name, "2")])
    assert (reply.status_code, reply.json()["detail"]) == (
        422,
        f"{name} occurs twice in the query; give it once",
    )


def test_who_may_submit_and_see(gateway: GatewayInfo, private_state: Path) -> None:
    owner = {"authorization": f"Bearer {gateway.token}"}
    with control(gateway) as client:
        key = client.post("/api/keys").json()
        source = "def closed(x: int = 0) -> int:\n    return x\n"
        for team, status in ((None, 200), ("other-team", 403)):
            extra = {"owner": team} if team else {}
            with deployed(source, serve=True, **extra) as handle, Client(gateway, handle) as app:
                with Client(gateway, handle, headers=owner) as its_owner:
                    request = its_owner.submit(x=7)
                    its_owner.finish(request)
                for method, path in (
                    ("POST", ""),
                    ("GET", f"/requests/{request}"),
                    ("GET", f"/requests/{request}/status"),
                    ("GET", f"/requests/{request}/status/stream"),
                    ("PUT", f"/requests/{request}/cancel"),
                ):
                    body = {"json": {}} if method == "POST" else {}
                    assert app.request(method, path, **body).status_code == 401
                    wrong = app.request(method, path, headers=with_key("a:b"), **body)
                    assert wrong.status_code == 401
                    allowed = app.request(method, path, headers=with_key(key["key"]), **body)
                    expected = 400 if status == 200 and method == "PUT" else status
                    assert allowed.status_code == expected, (method, path)
        client.delete(f"/api/keys/{key['id']}")
    for name in ("queue.db", "queue.db-wal"):  # no key is written
        written = (private_state / name).read_bytes()
        assert gateway.token.encode() not in written
        assert key["key"].split(":")[1].encode() not in written


# --- order ------------------------------------------------------------------------------------
def test_positions_and_priorities(act: Client, gate: Gate, tmp_path: Path) -> None:
    path = str(tmp_path / "runs")
    with gate:
        low = {"x-fal-queue-priority": "low"}
        normal = {"x-fal-queue-priority": "normal"}
        requests = [
            act.submit(n=number, path=path, headers=headers)
            for number, headers in enumerate([low, normal, None, low, normal])
        ]
        positions = [act.state(request)["queue_position"] for request in requests]
        assert positions == [3, 0, 1, 4, 2]
        assert act.cancel(requests[2]).status_code == 202
        assert act.state(requests[4])["queue_position"] == 1
    for request in requests:
        act.finish(request)
    order = [line.split()[2] for line in Path(path).read_text().splitlines()]
    assert order == ["1.0", "4.0", "0.0", "3.0"]


def test_a_queue_that_is_longer_than_the_caller_wants_is_429(act: Client, gate: Gate) -> None:
    with gate:
        waiting = [act.submit() for _ in range(3)]
        refused = act.post("", json={}, params={"fal_max_queue_length": 3})
        assert refused.status_code == 429
        waiting.append(act.submit(params={"fal_max_queue_length": 4}))
    for request in waiting:
        assert act.finish(request).status_code == 200


def test_direct_callers_and_the_queue_take_turns(act: Client, gate: Gate, tmp_path: Path) -> None:
    path = str(tmp_path / "runs")
    url = str(act.base_url).replace("/queue/", "/run/").rstrip("/")
    with ThreadPoolExecutor(4) as pool, gate:
        queued = [act.submit(n=number, do="queued", path=path) for number in range(4)]
        direct = [
            pool.submit(httpx.post, url, json={"do": "direct", "path": path}) for _ in range(4)
        ]
        with control_of(act) as client:
            eventually(lambda: client.get("/api/apps/tester/act").json()["queued"] == 8)
        gate._path.touch()
        assert [reply.result().status_code for reply in direct] == [200] * 4
        for request in queued:
            act.finish(request)
    kinds = [line.split()[1] for line in Path(path).read_text().splitlines()]
    assert kinds in (["queued", "direct"] * 4, ["direct", "queued"] * 4)


def control_of(_: Client) -> httpx.Client:
    from fal_notebook import discovery, settings

    return control(discovery.ensure(settings.state_folder()))


# --- cancel -----------------------------------------------------------------------------------
CANCELLED = ("the request was cancelled", "client_cancelled")


def test_cancel_of_what_waits_completes_it(act: Client, gate: Gate, tmp_path: Path) -> None:
    path = tmp_path / "runs"
    with gate:
        request = act.submit(path=str(path))
        answer = act.cancel(request)
        assert (answer.status_code, answer.json()["status"]) == (202, "CANCELLATION_REQUESTED")
        assert act.status(request).status_code == 200
        result = act.get(f"/requests/{request}")
        assert result.status_code == 499
        assert result.json() == dict(zip(("detail", "error_type"), CANCELLED, strict=True))
        again = act.cancel(request)
        assert (again.status_code, again.json()["status"]) == (400, "ALREADY_COMPLETED")
        assert again.json()["error_type"] == again.headers["x-fal-error-type"] == "bad_request"
    assert runs(path) == []


def test_cancel_of_a_thread_at_work_lets_it_finish(act: Client, gate: Gate) -> None:
    with gate:
        assert act.cancel(gate.request).status_code == 202
        assert act.state(gate.request)["status"] == "IN_PROGRESS"
    assert act.finish(gate.request).status_code == 200
    assert act.cancel(gate.request).json()["status"] == "ALREADY_COMPLETED"


def test_cancel_of_an_async_function_lets_it_finish(
    gateway: GatewayInfo, eventually: Eventually
) -> None:
    source = (
        "import asyncio\nasync def nap(n: float = 0) -> float:\n"
        "    await asyncio.sleep(n)\n    return n\n"
    )
    with deployed(source, serve=True, auth="public") as handle, Client(gateway, handle) as nap:
        request = nap.submit(n=0.5)
        eventually(lambda: nap.state(request)["status"] == "IN_PROGRESS")
        assert nap.cancel(request).status_code == 202
        assert nap.finish(request).json() == 0.5
        # at any moment
        for pause in (0, 0.001, 0.003, 0.01):
            request = nap.submit(n=0.1)
            time.sleep(pause)
            assert nap.cancel(request).status_code == 202
            status = nap.finish(request, 5).status_code
            told = status, nap.state(request).get("error_type")
            assert told in ((200, None), (499, CANCELLED[1]))


# --- deadlines --------------------------------------------------------------------------------
def test_what_does_not_begin_in_time_is_504(act: Client, gate: Gate, tmp_path: Path) -> None:
    path = tmp_path / "runs"
    with gate:
        request = act.submit(path=str(path), headers={"x-fal-request-timeout": "1.2"})
        answer = act.finish(request)
        assert answer.status_code == 504
        assert answer.headers["x-fal-request-timeout-type"] == "user"
        assert answer.headers["x-fal-error-type"] == "request_timeout"
        assert act.state(request)["error_type"] == "request_timeout"
        assert act.state(request)["error"].endswith("within its x-fal-request-timeout")
    assert runs(path) == []


def test_what_has_begun_in_time_may_take_longer(act: Client) -> None:
    request = act.submit(do="sleep", n=1.5, headers={"x-fal-request-timeout": "1.1"})
    assert act.finish(request).status_code == 200


def test_no_attempt_begins_after_the_deadline(act: Client, tmp_path: Path) -> None:
    path, headers = tmp_path / "runs", {"x-fal-request-timeout": "1.1"}
    request = act.submit(do="fail", text="503", n=20, path=str(path), headers=headers)
    answer = act.finish(request)
    assert (answer.status_code, answer.headers["x-fal-request-timeout-type"]) == (504, "user")
    failed = len(runs(path))
    assert 2 <= failed <= 5  # the next would come after 0.1 + 0.2 + 0.4 + 0.8 s
    said = f"after {failed} attempts that failed, the next could not begin within its x-fal"
    assert said in answer.json()["detail"]


# --- retries ----------------------------------------------------------------------------------
@pytest.mark.parametrize("do", ["kill", "503", "504"])
def test_what_may_pass_is_tried_again_and_completes_once(
    act: Client, tmp_path: Path, do: str
) -> None:
    path = tmp_path / "runs"
    body = {"do": "kill"} if do == "kill" else {"do": "fail", "text": do}
    request = act.submit(n=2, path=str(path), **body)
    assert act.finish(request).json() == 3
    assert len(runs(path)) == 3
    assert len(set(runs(path))) == (1 if do == "504" else 3)  # 504 leaves the runner


@pytest.mark.parametrize(
    ("status", "headers", "attempts", "runners"),
    [
        (500, {}, 1, 1),
        (502, {}, 1, 1),
        (429, {}, 1, 1),
        (404, {"x-fal-needs-retry": "1"}, 1, 1),
        (500, {"x-fal-needs-retry": "1"}, 3, 1),
        (429, {"x-fal-needs-retry": "true"}, 3, 1),
        (503, {"x-fal-needs-retry": "0"}, 1, 1),
        (503, {"x-fal-stop-runner": "0"}, 3, 1),
        (500, {"x-fal-stop-runner": "1", "x-fal-needs-retry": "1"}, 3, 3),
    ],
)
def test_the_apps_headers_decide(
    act: Client, tmp_path: Path, status: int, headers: Any, attempts: int, runners: int
) -> None:
    path = tmp_path / "runs"
    request = act.submit(do="fail", n=2, text=str(status), path=str(path), extra=headers)
    answer = act.finish(request)
    assert len(runs(path)) == attempts
    assert len(set(runs(path))) == runners
    assert answer.status_code == (status if attempts == 1 else 200)
    assert "x-fal-stop-runner" not in answer.headers


def test_a_caller_who_wants_no_retry_gets_none(act: Client, tmp_path: Path) -> None:
    for do, status in (("kill", 503), ("fail", 503), ("fail", 504)):
        path = tmp_path / f"{do}{status}"
        body = {"do": do, "n": 2, "text": str(status), "path": str(path)}
        answer = act.finish(act.submit(headers={"x-fal-no-retry": "1"}, **body))
        assert answer.status_code == status
        assert len(runs(path)) == 1
        if do == "kill":
            assert answer.headers["x-fal-error-type"] == "runner_disconnected"


@pytest.mark.parametrize("no", ["", "0", "False", "no"])
def test_a_caller_may_say_that_retries_are_wanted(act: Client, tmp_path: Path, no: str) -> None:
    path = tmp_path / "runs"
    body = {"do": "fail", "n": 1, "text": "503", "path": str(path)}
    assert act.finish(act.submit(headers={"x-fal-no-retry": no}, **body)).status_code == 200


def test_a_direct_call_is_never_retried(act: Client, tmp_path: Path) -> None:
    url = str(act.base_url).replace("/queue/", "/run/").rstrip("/")
    path = tmp_path / "runs"
    answer = httpx.post(url, json={"do": "kill", "n": 9, "path": str(path)}, timeout=20)
    assert answer.status_code == 503
    assert answer.json()["error_type"] == "runner_disconnected"
    assert len(runs(path)) == 1


@pytest.mark.parametrize(
    ("options", "body", "attempts"),
    [
        ({"skip_retry_conditions": ["server_error"]}, {"do": "fail", "text": "503"}, 1),
        ({"skip_retry_conditions": ["connection_error"]}, {"do": "kill"}, 1),
        ({"skip_retry_conditions": ["timeout"]}, {"do": "fail", "text": "503"}, 3),
        ({"skip_retry_conditions": ["timeout"], "request_timeout": 1}, {"do": "hang"}, 1),
        ({"request_timeout": 1}, {"do": "hang"}, 3),
        ({"retry_config": {"server_error": {"retries": 1}}}, {"do": "fail", "text": "503"}, 2),
        ({"retry_config": {"timeout": {"retries": 0}}}, {"do": "fail", "text": "503"}, 3),
    ],
)
def test_the_apps_options_decide(
    gateway: GatewayInfo, tmp_path: Path, options: Any, body: Any, attempts: int
) -> None:
    path = tmp_path / "runs"
    source = ACT.replace("def act", "def picky")
    with (
        deployed(source, serve=True, auth="public", max_concurrency=1, **options) as handle,
        Client(gateway, handle) as app,
    ):
        answer = app.finish(app.submit(n=2, path=str(path), **body))
        assert len(runs(path)) == attempts
        assert answer.is_success == (attempts == 3)
        if body["do"] == "hang" and attempts == 1:
            assert answer.json()["error_type"] == "request_timeout"


def test_a_runner_that_is_killed_has_its_request_done_by_another(
    act: Client, tmp_path: Path
) -> None:
    path, go = tmp_path / "runs", tmp_path / "go"
    request = act.submit(do="wait", text=str(go), path=str(path))
    os.kill(int(eventually(lambda: runs(path))[0]), signal.SIGKILL)
    eventually(lambda: len(runs(path)) == 2)
    go.touch()
    assert act.finish(request).status_code == 200
    assert len(set(runs(path))) == 2


# --- what happens to the app ------------------------------------------------------------------
SLOW = """
import os, time
def slow(path: str = "", n: float = 0.1) -> int:
    time.sleep(n)
    open(path, "a").write(f"{os.getpid()}\\n")
    return VERSION
"""


def test_a_redeploy_serves_what_waits(gateway: GatewayInfo, tmp_path: Path) -> None:
    path = str(tmp_path / "runs")
    options = {"serve": True, "auth": "public", "max_concurrency": 1}
    with (
        deployed(SLOW.replace("VERSION", "1"), **options) as handle,
        Client(gateway, handle) as app,
    ):
        requests = [app.submit(path=path, n=0.3) for _ in range(12)]
        with deployed(SLOW.replace("VERSION", "2"), **options):
            answers = [app.finish(request).json() for request in requests]
    assert set(answers) == {1, 2}
    assert answers == sorted(answers)
    assert len(runs(tmp_path / "runs")) == 12


def test_a_deleted_app_completes_what_waits_with_404(
    gateway: GatewayInfo, tmp_path: Path, private_state: Path, eventually: Eventually
) -> None:
    source = SLOW.replace("VERSION", "1").replace("def slow", "def gone")
    with (
        deployed(source, serve=True, auth="public", max_concurrency=1) as handle,
        Client(gateway, handle) as app,
    ):
        requests = [app.submit(path=str(tmp_path / "runs"), n=0.5) for _ in range(5)]
        eventually(lambda: app.state(requests[0])["status"] == "IN_PROGRESS")
        with app.stream("GET", f"/requests/{requests[4]}/status/stream") as reply:
            told = events(reply)
            assert next(told)["status"] == "IN_QUEUE"
            handle.delete()
            *_, last = told
        assert (last["status"], last["error"]) == ("COMPLETED", "the app was deleted")
        eventually(lambda: app.status(requests[0]).status_code == 200)
        assert app.state(requests[4])["error"] == "the app was deleted"
        assert app.get(f"/requests/{requests[4]}").json()["detail"] == "the app was deleted"
        assert app.put(f"/requests/{requests[4]}/cancel").status_code == 400
        assert app.get(f"/requests/{'0' * 32}/status").status_code == 404
        assert app.post("").status_code == 404
    query = "SELECT state FROM requests WHERE app = 'gone'"

    def states() -> list[str]:
        database = sqlite3.connect(private_state / "queue.db")
        found = [row[0] for row in database.execute(query)]
        database.close()
        return found

    eventually(lambda: states() == ["COMPLETED"] * 5)


def test_a_queue_wakes_an_app_that_is_scaled_to_zero(
    gateway: GatewayInfo, tmp_path: Path, eventually: Eventually
) -> None:
    source = SLOW.replace("VERSION", "1").replace("def slow", "def asleep")
    with (
        deployed(source, serve=True, auth="public", keep_alive=0, max_concurrency=3) as handle,
        Client(gateway, handle) as app,
    ):
        app.finish(app.submit(path=str(tmp_path / "first")))
        eventually(lambda: handle.runners() == [])
        requests = [app.submit(path=str(tmp_path / "runs"), n=0.2) for _ in range(9)]
        assert [app.finish(request).json() for request in requests] == [1] * 9
        assert len(set(runs(tmp_path / "runs"))) == 3
        eventually(lambda: handle.runners() == [])


def test_many_at_once_are_each_done_once(gateway: GatewayInfo, tmp_path: Path) -> None:
    options = {"max_concurrency": 2, "max_multiplexing": 4, "min_concurrency": 2}
    source = ACT.replace("def act", "def busy")
    with (
        deployed(source, serve=True, auth="public", **options) as handle,
        Client(gateway, handle) as app,
        ThreadPoolExecutor(16) as pool,
    ):
        path = str(tmp_path / "runs")
        requests = list(pool.map(lambda n: app.submit(n=n, path=path), range(300)))
        assert [app.finish(request).json() for request in requests] == list(range(300))
        assert len(set(requests)) == 300
        assert len(runs(tmp_path / "runs")) == 300


def test_a_half_closed_submit_is_no_request(gateway: GatewayInfo, act: Client) -> None:
    with Wire(gateway) as wire:
        wire.send(post("/queue/tester/act", {"n": 1}).replace("Length: 8", "Length: 9"))
    assert act.finish(act.submit(n=2)).json() == 2
