"""What was accepted is done, whoever is killed in between: gateways, runners, the whole machine."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import httpx
import psutil
import pytest
from gateway_processes import deploy, processes_of, stop
from serving import control, eventually, with_key

from fal_notebook import discovery
from fal_notebook.discovery import GatewayInfo
from fal_notebook.gateway.store import RunnerRow, Store

KILLS = 50

WORK = """
import os, time
from typing import Any, ClassVar
from fastapi import HTTPException
def who(n: int = 0, x: float = 0, text: str = "", fail: bool = False) -> Any:
    time.sleep(x)
    if fail:
        raise HTTPException(418, "as asked")
    return [n, len(text), os.environ["FAL_RUNNER_ID"]]
"""


@pytest.fixture
def folder(state: Path) -> Iterator[Path]:
    """The state folder of the test; its clients are closed before what runs on it is ended."""
    yield state
    while Queue.opened:
        Queue.opened.pop().close()


class Queue:
    """The queue of the app that every test here deploys."""

    opened: ClassVar[list[httpx.Client]] = []

    def __init__(self, gateway: GatewayInfo, key: str = "") -> None:
        self.url = f"{gateway.url}/queue/tester/who"
        headers = with_key(key) if key else {}
        self.http = httpx.Client(headers=headers, timeout=20, trust_env=False)
        self.opened.append(self.http)

    def submit(self, **body: Any) -> str:
        reply = self.http.post(self.url, json=body)
        assert reply.status_code == 200, reply.text
        return str(reply.json()["request_id"])

    def state(self, request: str) -> str:
        return str(self.http.get(f"{self.url}/requests/{request}/status").json()["status"])

    def finish(self, request: str, timeout: float = 30) -> httpx.Response:
        eventually(lambda: self.state(request) == "COMPLETED", timeout)
        return self.http.get(f"{self.url}/requests/{request}")


def kill(gateway: GatewayInfo, folder: Path) -> None:
    os.kill(gateway.pid, signal.SIGKILL)
    discovery.wait_until_gone(folder)


def start(folder: Path) -> subprocess.Popen[bytes]:
    """Start a gateway without waiting for it."""
    log = (folder / "gateway.log").open("ab")
    command = [sys.executable, "-m", "fal_notebook.gateway"]
    with log:
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def wait_until_published(folder: Path, process: subprocess.Popen[bytes]) -> None:
    while json.loads(discovery.info_file(folder).read_text())["pid"] != process.pid:
        assert process.poll() is None, (folder / "gateway.log").read_text()[-2000:]
        time.sleep(0.005)


@dataclass
class Load:
    """Submits as fast as it is answered, until told to stop; gateways may come and go."""

    queue: Queue
    seed: int
    accepted: dict[str, dict[str, Any]] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        chance = random.Random(self.seed)
        while not self.ended.is_set():
            body = {"n": chance.randrange(10**9), "x": chance.choice([0, 0, 0.002, 0.02])}
            if chance.random() < 0.05:
                body["text"] = "x" * chance.choice([70_000, 1_500_000])
            if chance.random() < 0.1:
                body["fail"] = True
            with contextlib.suppress(httpx.TransportError):
                reply = self.queue.http.post(self.queue.url, json=body)
                if reply.status_code == 200:
                    self.accepted[reply.json()["request_id"]] = body
                else:
                    self.refused.append(reply.text)
            time.sleep(0.01)


def test_fifty_kills_lose_nothing(folder: Path) -> None:
    gateway = discovery.ensure(folder)
    deploy(gateway, WORK, min_concurrency=1, max_concurrency=1, max_multiplexing=8, auth="private")
    with control(gateway) as client:
        key = client.post("/api/keys").json()["key"]
    queue = Queue(gateway, key)
    first = queue.finish(queue.submit(n=1)).json()
    kill(gateway, folder)
    loads = [Load(Queue(gateway, key), seed) for seed in range(4)]
    threads = [threading.Thread(target=load.run) for load in loads]
    for thread in threads:
        thread.start()
    chance = random.Random(50)
    try:
        for number in range(KILLS):
            process = start(folder)
            if number % 5 < 2:
                wait_until_published(folder, process)
                time.sleep(chance.uniform(0.0, 0.3))
            else:  # these die while they start
                time.sleep(chance.uniform(0.1, 0.4))
            assert process.poll() is None, (folder / "gateway.log").read_text()[-2000:]
            process.kill()
            process.wait()
    finally:
        for load in loads:
            load.ended.set()
        last = discovery.ensure(folder)
        for thread in threads:
            thread.join()
    assert last.url == gateway.url
    assert [text for load in loads for text in load.refused] == []
    accepted = {k: v for load in loads for k, v in load.accepted.items()}
    assert len(accepted) > KILLS
    for request, body in accepted.items():
        answer = queue.finish(request)
        if body.get("fail"):
            assert answer.status_code == 418
        else:
            # One runner did it all: each gateway adopted it.
            assert answer.json() == [body["n"], len(body.get("text", "")), first[2]], answer.text
    _each_has_one_answer(folder)


def _each_has_one_answer(folder: Path) -> None:
    """Check also what was accepted without the client's knowledge, and that no body is left."""
    with contextlib.closing(sqlite3.connect(folder / "queue.db")) as database:
        left = "SELECT count(*) FROM requests WHERE state != 'COMPLETED'"
        eventually(lambda: database.execute(left).fetchone() == (0,))
        count = "SELECT (SELECT count(*) FROM requests), (SELECT count(*) FROM answers)"
        requests, answers = database.execute(count).fetchone()
        assert requests == answers
    eventually(lambda: not list((folder / "queue").glob("*.body")))


def test_files_of_what_was_not_accepted_are_removed(folder: Path) -> None:
    gateway = discovery.ensure(folder)
    deploy(gateway, WORK)
    queue = Queue(gateway)
    spent, kept = (queue.submit(text="x" * 100_000, x=seconds) for seconds in (0, 5))
    queue.finish(spent)
    kill(gateway, folder)
    for name in ("0123456789abcdef", spent):
        (folder / "queue" / f"{name}.body").write_bytes(b"half of it")
    discovery.ensure(folder)
    assert [path.stem for path in (folder / "queue").iterdir()] == [kept]


def test_what_was_at_work_when_the_gateway_died_is_done(folder: Path, eventually: Any) -> None:
    gateway = discovery.ensure(folder)
    deploy(gateway, WORK, max_concurrency=1)
    queue = Queue(gateway)
    request, waiting = queue.submit(n=1, x=1), queue.submit(n=2)
    eventually(lambda: queue.state(request) == "IN_PROGRESS")
    refused = queue.http.post(queue.url, json={"x": 5}, headers={"x-fal-no-retry": "1"})
    cancelled = queue.submit(n=4, x=1)
    kill(gateway, folder)
    discovery.ensure(folder)
    assert queue.finish(request).json()[0] == 1
    assert queue.finish(waiting).json()[0] == 2
    queue.http.put(f"{queue.url}/requests/{cancelled}/cancel")
    no_retry = refused.json()["request_id"]
    eventually(lambda: queue.state(no_retry) == "IN_PROGRESS")
    kill(gateway=discovery.ensure(folder), folder=folder)
    discovery.ensure(folder)
    answer = queue.finish(no_retry)  # it may have run, and its caller wants no second time
    assert (answer.status_code, answer.json()["error_type"]) == (503, "runner_disconnected")
    assert queue.http.get(f"{queue.url}/requests/{cancelled}").status_code in (200, 499)


def test_old_runners_that_are_needed_are_adopted_all(folder: Path, eventually: Any) -> None:
    gateway = discovery.ensure(folder)
    deploy(gateway, WORK, max_concurrency=2, keep_alive=8)
    queue = Queue(gateway)
    requests = [queue.submit(n=n, x=0.5) for n in range(12)]
    eventually(lambda: _states(gateway) == ["RUNNING", "RUNNING"])
    with control(gateway) as client:
        before = {r["id"] for r in client.get("/api/apps/tester/who/runners").json()}
    kill(gateway, folder)
    store = Store(folder / "store.db")
    with store.transaction():
        for row in store.select(RunnerRow, "state != 'TERMINATED'"):
            row.created_at, row.ready_at = row.created_at - 1000, (row.ready_at or 0) - 1000
            store.put(row)
    store.close()
    queue = Queue(discovery.ensure(folder))
    answers = [queue.finish(request).json() for request in requests]
    assert [answer[0] for answer in answers] == list(range(12))
    assert {answer[2] for answer in answers} == before


def _states(gateway: GatewayInfo) -> list[str]:
    with control(gateway) as client:
        return [r["state"] for r in client.get("/api/apps/tester/who/runners").json()]


def test_a_cancel_outlives_the_gateway(folder: Path, eventually: Any) -> None:
    gateway = discovery.ensure(folder)
    deploy(gateway, WORK, max_concurrency=1)
    queue = Queue(gateway)
    request = queue.submit(n=1, x=3)
    eventually(lambda: queue.state(request) == "IN_PROGRESS")
    assert queue.http.put(f"{queue.url}/requests/{request}/cancel").status_code == 202
    kill(gateway, folder)
    discovery.ensure(folder)
    assert queue.finish(request).status_code == 499


def test_a_deadline_outlives_the_gateway(folder: Path, eventually: Any) -> None:
    gateway = discovery.ensure(folder)
    deploy(gateway, WORK, max_concurrency=1)
    queue = Queue(gateway)
    busy = queue.submit(x=3)
    eventually(lambda: queue.state(busy) == "IN_PROGRESS")
    late = queue.http.post(queue.url, json={}, headers={"x-fal-request-timeout": "1.1"})
    kill(gateway, folder)
    discovery.ensure(folder)
    assert queue.finish(late.json()["request_id"]).status_code == 504


def test_a_reboot_leaves_a_store_that_starts_clean(folder: Path) -> None:
    gateway = discovery.ensure(folder)
    deploy(gateway, WORK, max_concurrency=1, min_concurrency=1)
    queue = Queue(gateway)
    runner = queue.finish(queue.submit(n=1)).json()[2]
    done = queue.submit(n=2)
    queue.finish(done)
    requests = [queue.submit(n=n, x=0.3) for n in range(5)]
    for process in processes_of(folder):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    discovery.wait_until_gone(folder)
    store = Store(folder / "store.db")
    shutil.rmtree(store.note("sockets", str))  # /tmp is empty after a reboot
    store.close()
    again = discovery.ensure(folder)
    assert [queue.finish(request).json()[0] for request in requests] == list(range(5))
    assert queue.finish(done).json()[0] == 2
    store = Store(folder / "store.db")
    assert store.select(RunnerRow, "id = ?", runner)[0].state == "TERMINATED"
    store.close()
    with control(again) as client:
        assert len(client.get("/api/apps/tester/who/runners").json()) == 1


def test_runners_whose_gateway_does_not_come_back_end(
    folder: Path, monkeypatch: pytest.MonkeyPatch, eventually: Any
) -> None:
    monkeypatch.setenv("FAL_NOTEBOOK_ORPHAN_TIMEOUT", "1")
    gateway = discovery.ensure(folder)
    deploy(gateway, WORK, min_concurrency=2, max_concurrency=2)
    queue = Queue(gateway)
    queue.finish(queue.submit())
    kill(gateway, folder)
    eventually(lambda: processes_of(folder) == [])


def test_a_gateway_that_is_stopped_goes_on_later(folder: Path, eventually: Any) -> None:
    gateway = discovery.ensure(folder)
    deploy(gateway, WORK, max_concurrency=1)
    queue = Queue(gateway)
    requests = [queue.submit(n=n, x=0.2) for n in range(6)]
    eventually(lambda: queue.state(requests[0]) == "IN_PROGRESS")
    url = f"{queue.url}/requests/{requests[5]}/status/stream"
    with queue.http.stream("GET", url) as stream:  # who follows does not hold it up
        lines = stream.iter_lines()
        assert next(lines)
        began = time.monotonic()
        stop(gateway, folder)
        assert time.monotonic() - began < 10
        with contextlib.suppress(httpx.TransportError):
            list(lines)
    assert processes_of(folder) == []
    discovery.ensure(folder)
    assert [queue.finish(request).json()[0] for request in requests] == list(range(6))
