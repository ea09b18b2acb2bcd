"""The queue inside the test's own loop: ten attempts without their waits, and a full disk."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from inside import close_gateway, deployed, open_gateway, until
from serving import fill
from starlette.types import Message

from fal_notebook.gateway.app import GatewayApp
from fal_notebook.gateway.auth import API, Principal
from fal_notebook.gateway.gateway import Gateway
from fal_notebook.gateway.queue import queue, retry
from fal_notebook.gateway.queue.routes import QueueRoutes, _Asked
from fal_notebook.gateway.queue.table import QueuedRequest
from fal_notebook.runner import frames

URL = "/queue/tester/app"


def client_of(gateway: Gateway) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(GatewayApp(gateway))
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:9")


async def finish(client: httpx.AsyncClient, request: str) -> httpx.Response:
    while (await client.get(f"{URL}/requests/{request}/status")).status_code == 202:
        await asyncio.sleep(0.01)
    return await client.get(f"{URL}/requests/{request}")


ANSWERS_504 = """
from fastapi import Response
def f(path: str):
    open(path, "a").write("x")
    return Response("", 504)
"""
ENDS = """
import os
def f(path: str):
    open(path, "a").write("x")
    os._exit(3)
"""


@pytest.mark.parametrize(("source", "status"), [(ANSWERS_504, 504), (ENDS, 503)])
async def test_ten_attempts_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, status: int
) -> None:
    monkeypatch.setattr(retry, "FIRST_DELAY", 0.001)
    monkeypatch.setattr(retry, "LONGEST_DELAY", 0.01)
    gateway = open_gateway(tmp_path)
    await deployed(gateway, source, serve=True, auth="public", max_concurrency=2)
    async with client_of(gateway) as client:
        body = {"path": str(tmp_path / "runs")}
        request = (await client.post(URL, json=body)).json()["request_id"]
        assert (await finish(client, request)).status_code == status
    assert (tmp_path / "runs").read_text() == "x" * 10
    found = gateway.queue.records.find(request)
    assert found is not None
    assert found.attempts == 10
    await close_gateway(gateway)


LEAKS = """
import os
from fastapi import Response
def f(before: int = 0, raises: bool = False):
    _, _, key = os.environ["FAL_KEY"].partition(":")
    if raises: raise type(key, (Exception,), {})
    return Response("x" * before + key, 500)
"""


async def test_a_runners_key_shows_in_no_status(tmp_path: Path) -> None:
    gateway = open_gateway(tmp_path)
    await deployed(gateway, LEAKS, serve=True, auth="public", max_concurrency=1)
    pickled = {"content-type": frames.CONTENT_TYPE}
    raises = frames.dump_call((), {"raises": True})
    async with client_of(gateway) as client:
        client.headers["authorization"] = "Bearer t"
        for asked, error, result in (
            ({"json": {}}, "the app answered 500: [secret FAL_KEY]", "frk_"),
            ({"json": {"before": 960}}, f"the app answered 500: {'x' * 960}[secret FAL_KEY]", ""),
            ({"headers": pickled, "content": raises}, "the function raised [secret FAL_KEY]", ""),
        ):
            request = (await client.post(URL, **asked)).json()["request_id"]
            assert result in (await finish(client, request)).text
            status = await client.get(f"{URL}/requests/{request}/status")
            assert status.json()["error"] == error
    await close_gateway(gateway)


async def die(gateway: Gateway) -> None:
    """End a gateway and its runners; its queue writes nothing more, as if it had been killed."""
    await gateway.queue.close()
    await close_gateway(gateway)


async def test_what_a_deleted_app_left_holds_up_no_start(tmp_path: Path) -> None:
    gateway = open_gateway(tmp_path)
    left = [
        QueuedRequest(n, f"{n:032x}", "tester", "deleted", "POST", b"/", [], None)
        for n in range(1, 1001)
    ]
    await asyncio.gather(*(gateway.queue.records.accept(request, b"") for request in left))
    await die(gateway)
    gateway = open_gateway(tmp_path)
    records = gateway.queue.records
    await gateway.take_up_queue()
    assert len(records.unfinished()) == len(left)
    await until(lambda: not records.unfinished())
    assert {records.answer(request).status for request in left} == {404}
    await close_gateway(gateway)


async def test_the_end_of_a_gateway_ends_an_attempt(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    source = (
        "import time\ndef f():\n    print('begun')\n"
        f"    open({str(runs)!r}, 'a').write('x')\n    time.sleep(60)"
    )
    gateway = open_gateway(tmp_path)
    await deployed(gateway, source, serve=True, auth="public")
    async with client_of(gateway) as client:
        request = (await client.post(URL, json={})).json()["request_id"]
    await until(lambda: runs.exists() and runs.read_text() == "x")
    await die(gateway)
    gateway = open_gateway(tmp_path)
    await gateway.take_up_queue()
    await until(lambda: runs.read_text() == "xx")  # at once, but it is the second
    found = gateway.queue.records.find(request)
    assert found is not None
    assert found.attempts == 2
    found.attempts = retry.ATTEMPTS
    await gateway.queue.records.begin(found, found.runner)
    await die(gateway)
    gateway = open_gateway(tmp_path)
    await gateway.take_up_queue()
    async with client_of(gateway) as client:
        answer = await finish(client, request)
        status = await client.get(f"{URL}/requests/{request}/status?logs=1")
    assert [line["message"] for line in status.json()["logs"]] == ["begun", "begun"]
    assert (answer.status_code, answer.json()["error_type"]) == (503, "runner_disconnected")
    assert "the gateway was ended while the request ran" in answer.json()["detail"]
    assert runs.read_text() == "xx"
    await close_gateway(gateway)


async def test_a_full_disk_is_507_and_nothing_is_half_written(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(queue, "DISK_PERIOD", 0.05)
    gateway = open_gateway(small_disk)
    source = "import os, time\ndef f(go: str = '', text: str = ''):\n    " + (
        "while go and not os.path.exists(go): time.sleep(0.01)\n    return len(text)"
    )
    options: dict[str, Any] = {"serve": True, "auth": "public", "max_concurrency": 1}
    fleet = await deployed(gateway, source, **options)
    go = small_disk.parent / "go"
    async with client_of(gateway) as client:
        begun = (await client.post(URL, json={"go": str(go)})).json()["request_id"]
        fill(small_disk, leave=800_000)
        answer = await client.post(URL, json={"text": "x" * 1_000_000})
        assert answer.status_code == 507
        assert answer.json()["error_type"] == "internal_error"
        assert answer.json()["detail"].startswith(f"no room is left in {small_disk}")
        assert "free space" in answer.json()["detail"]
        assert list((small_disk / "queue").glob("*")) == []
        accepted = []
        while (answer := await client.post(URL, json={"text": "y" * 20_000})).status_code == 200:
            accepted.append(answer.json()["request_id"])
        assert answer.status_code == 507
        fill(small_disk, leave=0)
        go.touch()  # the answer has no room now
        await until(lambda: "wait until they can be recorded: no room is left" in caplog.text)
        # SQLite has a few pages in reserve, with which some may begin.
        await until(lambda: fleet.sample().queued >= len(accepted) // 2 > 0)
        assert caplog.text.count("wait until they can be recorded") == 1
        (small_disk / "filler").unlink()
        assert (await finish(client, begun)).json() == 0
        assert [(await finish(client, r)).json() for r in accepted] == [20_000] * len(accepted)
        count = gateway.queue.records.journal.read("SELECT count(*) FROM requests")[0][0]
        assert count == 1 + len(accepted)
    await close_gateway(gateway)


async def test_the_last_piece_of_a_body_counts_too_and_is_refused_at_once(tmp_path: Path) -> None:
    gateway = open_gateway(tmp_path)
    await deployed(gateway, "def f(): return 1", serve=True, auth="public")
    routes = QueueRoutes(gateway.queue, gateway.admission, no_logs, 1000)
    pieces = [{"type": "http.request", "body": b"x" * 1001, "more_body": False}]
    sent: list[Message] = []

    async def receive() -> Message:
        if not pieces:
            await asyncio.Event().wait()  # the caller keeps its connection
        return pieces.pop()

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"host", b"gateway"), (b"transfer-encoding", b"chunked")]
    scope = {
        "type": "http",
        "method": "POST",
        "scheme": "http",
        "headers": headers,
        "raw_path": f"/queue/{gateway.owner}/app".encode(),
        "query_string": b"",
    }
    await asyncio.wait_for(routes(scope, receive, send), 1)
    assert sent[0]["status"] == 413
    assert gateway.queue.records.unfinished() == []
    await close_gateway(gateway)


async def no_logs(request: QueuedRequest) -> list[dict[str, Any]]:
    return []


def test_log_lines_of_a_deleted_app_are_for_its_owner() -> None:
    request = QueuedRequest(1, "a" * 32, "ada", "app", "POST", b"/", [], "bob")
    told = {
        user: _Asked(request, Principal(user, API), None).may_see_logs for user in ("ada", "bob")
    }
    assert told == {"ada": True, "bob": False}
    assert not _Asked(request, None, None).may_see_logs
