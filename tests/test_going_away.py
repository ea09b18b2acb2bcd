"""Callers that go away, read slowly or cancel: what their app sees, whose slot is free when."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from serving import Wire, control, deployed, post, run_url
from test_sockets import app_of, in_flight

from fal_notebook.discovery import GatewayInfo

Eventually = Callable[..., Any]

WORK = """
from __future__ import annotations
import asyncio, threading, time
import fal_notebook as fal
from fastapi import Header, Request
from fastapi.responses import StreamingResponse
from fal_notebook.toolkit.utils.endpoint import cancel_on_disconnect

class Work(fal.App, max_multiplexing=4, max_concurrency=1, auth="public"):
    def setup(self):
        self.seen, self.count, self.stopped = [], 0, threading.Event()

    @fal.endpoint("/seen")
    def all_seen(self) -> list:
        return [*self.seen, self.count]

    @fal.endpoint("/flood")
    def flood(self, n: int):
        for self.count in range(n):
            yield "x" * 2**20

    @fal.endpoint("/async-flood")
    async def async_flood(self, n: int):
        for self.count in range(n):
            yield "x" * 2**20

    @fal.endpoint("/response")
    def response(self, kind: str):
        def plain():
            try:
                while True:
                    yield "x" * 2**16
            finally:
                self.seen.append("closed plain")

        async def is_async():
            try:
                while True:
                    yield b"x" * 2**16
            finally:
                self.seen.append("closed async")

        return StreamingResponse({"plain": plain, "async": is_async}[kind](), 201)

    @fal.endpoint("/by-fastapi")
    def by_fastapi(self, kind: str, x_a: str = Header("")):
        return self.response(kind)

    @fal.endpoint("/still")
    def still(self):
        yield "first"
        self.stopped.wait(60)
        yield "second"

    @fal.endpoint("/still/cancel")
    def still_cancel(self) -> None:
        self.seen.append("still cancel " + self.current_request.request_id)
        self.stopped.set()

    @fal.endpoint("/wait")
    def held(self) -> str:
        self.seen.append("begun")
        self.stopped.clear()
        self.stopped.wait(60)
        return "stopped"

    @fal.endpoint("/wait/cancel")
    def wait_cancel(self) -> None:
        self.seen.append("wait cancel " + self.current_request.request_id)
        self.stopped.set()

    @fal.endpoint("/careful")
    async def careful(self, request: Request) -> None:
        self.seen.append("careful")
        async with cancel_on_disconnect(request):
            await asyncio.sleep(3600)
        self.seen.append("put away")

    @fal.endpoint("/told")
    async def told(self, request: Request) -> dict:
        async with cancel_on_disconnect(request):
            await asyncio.sleep(3600)
            return {"done": True}

    @fal.endpoint("/told-with-header")
    async def told_with_header(self, request: Request, x_a: str = Header("")) -> dict:
        async with cancel_on_disconnect(request):
            await asyncio.sleep(3600)
            return {"done": True}

    @fal.endpoint("/careful/cancel")
    async def careful_cancel(self) -> None:
        self.seen.append("careful cancel")

    @fal.endpoint("/with-header")
    async def with_header(self, x_a: str = Header("")) -> None:
        self.seen.append("with header")
        try:
            await asyncio.sleep(3600)
        finally:
            self.seen.append("without header")
"""


@pytest.fixture(scope="module")
def work(gateway: GatewayInfo) -> Iterator[Any]:
    with app_of(WORK, "Work", serve=True) as handle:
        yield handle


def completed(gateway: GatewayInfo, app: str, status: str) -> float:
    """Return how many requests have ended so, as the metrics tell."""
    with control(gateway) as client:
        lines = client.get("/metrics").text.splitlines()
    found = [
        line
        for line in lines
        if line.startswith("fal_app_requests_completed") and app in line and f'"{status}"' in line
    ]
    return sum(float(line.rpartition(" ")[2]) for line in found)


def counted(seen: list[Any]) -> int:
    return int(seen[-1])


@pytest.mark.parametrize("path", ["/flood", "/async-flood"])
def test_a_slow_reader_holds_the_generator_back(
    gateway: GatewayInfo, work: Any, path: str, eventually: Eventually
) -> None:
    memory = psutil.Process(gateway.pid).memory_info
    with Wire(gateway) as wire:
        wire.send(post(f"/run/tester/work{path}", {"n": 300}))
        wire.until(b"data: ")
        before = memory().rss
        counts: list[int] = []

        def settled() -> bool:
            counts.append(counted(work.all_seen()))
            return len(counts) > 20 and len({*counts[-20:]}) == 1

        eventually(settled)
        assert counts[-1] < 40
        assert memory().rss - before < 32 * 2**20
        assert in_flight(work) == 1
    eventually(lambda: in_flight(work) == 0)
    assert counted(work.all_seen()) < 60


def test_a_stream_whose_caller_has_gone_is_499_and_reaches_its_cancel_route(
    gateway: GatewayInfo, work: Any, eventually: Eventually
) -> None:
    before = completed(gateway, "tester/work", "499")
    with httpx.stream("POST", run_url(gateway, work) + "/still", json={}) as answer:
        next(answer.iter_lines())
        request = answer.headers["x-fal-request-id"]
    eventually(lambda: f"still cancel {request}" in work.all_seen())
    eventually(lambda: in_flight(work) == 0)
    eventually(lambda: completed(gateway, "tester/work", "499") == before + 1)


def test_a_thread_that_streams_holds_its_slot_until_it_has_ended(
    gateway: GatewayInfo, eventually: Eventually
) -> None:
    source = WORK.replace("        self.stopped.set()\n", "", 1)
    with app_of(source, "Work", name="slow", serve=True) as handle:
        with httpx.stream("POST", run_url(gateway, handle) + "/still", json={}) as answer:
            next(answer.iter_lines())
        eventually(lambda: any("still cancel" in str(item) for item in handle.all_seen()))
        assert in_flight(handle) == 1
        httpx.post(run_url(gateway, handle) + "/wait/cancel")
        eventually(lambda: in_flight(handle) == 0)


def test_a_request_whose_caller_has_gone_reaches_its_cancel_route(
    gateway: GatewayInfo, work: Any, eventually: Eventually
) -> None:
    before = completed(gateway, "tester/work", "499")
    with Wire(gateway) as wire:
        wire.send(post("/run/tester/work/wait", {}))
        eventually(lambda: "begun" in work.all_seen())
    eventually(lambda: any("wait cancel" in str(item) for item in work.all_seen()))
    eventually(lambda: in_flight(work) == 0)
    eventually(lambda: completed(gateway, "tester/work", "499") == before + 1)


def test_a_queued_request_reaches_its_cancel_route_on_its_runner(
    gateway: GatewayInfo, work: Any, eventually: Eventually
) -> None:
    with control(gateway) as client:
        told = client.post("/queue/tester/work/wait", json={}).json()
        eventually(lambda: client.get(told["status_url"]).json()["status"] == "IN_PROGRESS")
        assert client.put(told["cancel_url"]).status_code == 202
        eventually(lambda: f"wait cancel {told['request_id']}" in work.all_seen())
        eventually(lambda: client.get(told["status_url"]).json()["status"] == "COMPLETED")


def test_a_call_with_python_values_reaches_its_cancel_route(
    work: Any, eventually: Eventually
) -> None:
    request = work["/wait"].submit()
    eventually(lambda: request.status().state == "IN_PROGRESS")
    assert request.cancel()
    assert request.result(20) == "stopped"
    assert f"wait cancel {request.request_id}" in work.all_seen()


def test_a_call_with_python_values_that_is_left_reaches_it_too(
    work: Any, eventually: Eventually
) -> None:
    def times(word: str) -> int:
        return sum(word in str(item) for item in work.all_seen())

    async def leave() -> None:
        before = times("begun")
        call = asyncio.ensure_future(work["/wait"].aio())
        while await asyncio.to_thread(times, "begun") == before:
            pass
        call.cancel()
        await asyncio.wait((call,))

    before = times("wait cancel")
    asyncio.run(leave())
    eventually(lambda: times("wait cancel") == before + 1)
    eventually(lambda: in_flight(work) == 0)


def test_cancel_on_disconnect_leaves_its_block_when_the_caller_goes(
    gateway: GatewayInfo, work: Any, eventually: Eventually
) -> None:
    with Wire(gateway) as wire:
        wire.send(post("/run/tester/work/careful", {}))
        eventually(lambda: "careful" in work.all_seen())
    eventually(lambda: "put away" in work.all_seen())
    eventually(lambda: in_flight(work) == 0)


@pytest.mark.parametrize("path", ["/told", "/told-with-header"])
@pytest.mark.parametrize("from_python", [False, True])
def test_code_that_its_caller_left_returns_nothing_wrong(
    gateway: GatewayInfo, work: Any, eventually: Eventually, path: str, from_python: bool
) -> None:
    async def leave() -> None:
        call = asyncio.ensure_future(work[path].aio())
        await asyncio.to_thread(eventually, lambda: in_flight(work) == 1)
        call.cancel()
        await asyncio.wait((call,))

    if from_python:
        asyncio.run(leave())
    else:
        with Wire(gateway) as wire:
            wire.send(post(f"/run/tester/work{path}", {}))
            eventually(lambda: in_flight(work) == 1)
    eventually(lambda: in_flight(work) == 0)
    assert [error for error in work.errors() if error["type"] == "TypeError"] == []


def test_what_fastapi_serves_is_cancelled_too(
    gateway: GatewayInfo, work: Any, eventually: Eventually
) -> None:
    with Wire(gateway) as wire:
        wire.send(post("/run/tester/work/with-header", {}))
        eventually(lambda: "with header" in work.all_seen())
    eventually(lambda: "without header" in work.all_seen())
    eventually(lambda: in_flight(work) == 0)


FASTAPI = """
from fastapi import Header
def {name}(n: int, x_a: str = Header("none")):
    {body}
"""


@pytest.mark.parametrize(
    ("body", "events"),
    [
        ("yield from [[i, x_a] for i in range(n)]", ['data: [0,"b"]', 'data: [1,"b"]']),
        ("return [n, x_a]", ['data: [2,"b"]']),
    ],
)
def test_what_fastapi_serves_can_be_streamed(
    gateway: GatewayInfo, body: str, events: list[str]
) -> None:
    source = FASTAPI.format(name="headed", body=body)
    with deployed(source, serve=True, auth="public") as handle:
        url = run_url(gateway, handle) + "/stream"
        answer = httpx.post(url, json={"n": 2}, headers={"x-a": "b"})
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert [line for line in answer.text.splitlines() if line] == events
        assert httpx.post(url, json={}).status_code == 422
        assert list(handle.openapi()["paths"]) == ["/"]


def test_a_slow_caller_is_let_go_at_request_timeout_and_the_log_says_nothing(
    gateway: GatewayInfo, private_state: Path, eventually: Eventually
) -> None:
    log = private_state / "gateway.log"
    before = log.read_text()
    options = {"name": "impatient", "serve": True, "request_timeout": 1}
    with app_of(WORK, "Work", **options) as handle:
        runner = handle.runners()[0]["id"]
        with Wire(gateway) as wire:
            wire.send(post("/run/tester/impatient/flood", {"n": 300}))
            wire.until(b"data: ")
            eventually(lambda: in_flight(handle) == 0)
            with contextlib.suppress(OSError):  # it was cut
                wire.rest()
        assert [r["id"] for r in handle.runners()] == [runner]
    assert log.read_text() == before


def test_many_streams_that_are_left_free_all_slots(
    gateway: GatewayInfo, work: Any, eventually: Eventually
) -> None:
    async def leave() -> None:
        async with httpx.AsyncClient() as client:
            url = run_url(gateway, work) + "/async-flood"

            async def one() -> None:
                with contextlib.suppress(httpx.HTTPError):
                    async with client.stream("POST", url, json={"n": 1000}) as answer:
                        await answer.aiter_bytes().__anext__()

            await asyncio.gather(*(one() for _ in range(12)))

    asyncio.run(leave())
    eventually(lambda: in_flight(work) == 0)
    assert httpx.post(run_url(gateway, work) + "/seen").status_code == 200


@pytest.mark.parametrize("kind", ["plain", "async"])
@pytest.mark.parametrize("path", ["/response", "/by-fastapi"])
@pytest.mark.parametrize("way", ["http", "python"])
def test_a_streaming_response_that_never_waits_ends_with_its_caller(
    gateway: GatewayInfo, work: Any, kind: str, path: str, way: str, eventually: Eventually
) -> None:
    before = work.all_seen().count(f"closed {kind}")
    if way == "http":
        url = run_url(gateway, work) + path
        with httpx.stream("POST", url, json={"kind": kind}, params={"kind": kind}) as answer:
            assert answer.status_code == 201
            next(answer.iter_bytes())
    else:
        next(values := work[path].stream(kind=kind))
        values.close()
    eventually(lambda: work.all_seen().count(f"closed {kind}") == before + 1)
    eventually(lambda: in_flight(work) == 0)


SERVER = """
%%fal_server cancelled exposed_port=8000 wait=true max_multiplexing=4 lang=python
def cancelled(port: int) -> None:
    import threading
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    stopped, seen = threading.Event(), []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            seen.append(self.path + " " + self.headers["x-fal-request-id"])
            if self.path == "/work":
                stopped.wait(60)
            elif self.path == "/work/cancel":
                stopped.set()
            self.reply("\\n".join(seen))

        def do_GET(self):
            self.reply("\\n".join(seen))

        def reply(self, text):
            self.send_response(200)
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def test_a_server_of_ones_own_has_its_cancel_path_called_for_queued_requests_only(
    gateway: GatewayInfo, shell: Any, eventually: Eventually
) -> None:
    shell.run(SERVER.lstrip())
    server = shell["cancelled"]

    def seen() -> str:
        return str(server.request("GET", "/seen").text)

    before = completed(gateway, "tester/cancelled", "499")
    with Wire(gateway) as wire:
        auth = f"Authorization: Bearer {gateway.token}"
        wire.send(post("/run/tester/cancelled/work", {}, auth))
        eventually(lambda: "/work" in seen())
    eventually(lambda: completed(gateway, "tester/cancelled", "499") == before + 1)
    assert "cancel" not in seen()  # it saw its connection end
    with control(gateway) as client:
        told = client.post("/queue/tester/cancelled/work", json={}).json()
        eventually(lambda: f"/work {told['request_id']}" in seen())
        assert client.put(told["cancel_url"]).status_code == 202
        eventually(lambda: f"/work/cancel {told['request_id']}" in seen())
        eventually(lambda: client.get(told["status_url"]).json()["status"] == "COMPLETED")
