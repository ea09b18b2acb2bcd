"""Connections to ``/run``: order, streams, callers that go away, other protocols."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from serving import Wire, control, deployed, in_flight, post, run_url

from fal_notebook.discovery import GatewayInfo


def test_a_head_request_leaves_a_usable_connection(gateway: GatewayInfo, act: str) -> None:
    with Wire(gateway) as wire:
        status, headers = wire.send(
            "HEAD /run/tester/act/health HTTP/1.1\nHost: GATEWAY\n\n"
        ).head()
        assert (status, int(headers["content-length"]) > 0) == (200, True)
        assert wire.send(post("/run/tester/act", {"n": 2})).response()[2] == b"2.0"


def test_pipelined_requests_are_answered_in_order(gateway: GatewayInfo, act: str) -> None:
    with Wire(gateway) as wire:
        wire.send("".join(post("/run/tester/act", {"n": n}) for n in range(5)))
        assert [wire.response()[2] for _ in range(5)] == [b"%d.0" % n for n in range(5)]


def test_an_http_1_0_caller_is_served(gateway: GatewayInfo, act: str) -> None:
    with Wire(gateway) as wire:
        wire.send('POST /run/tester/act HTTP/1.0\nHost: GATEWAY\nContent-Length: 8\n\n{"n": 3}')
        answer = wire.rest()
        assert b" 200 " in answer.split(b"\r\n")[0]
        assert b"chunked" not in answer
        assert answer.endswith(b"3.0")


def test_a_stream_is_not_forced_on_an_http_1_0_caller(gateway: GatewayInfo) -> None:
    source = "def items():\n    yield 1\n"
    with deployed(source, serve=True, auth="public"), Wire(gateway) as wire:
        wire.send("POST /run/tester/items HTTP/1.0\nHost: GATEWAY\nContent-Length: 2\n\n{}")
        assert b" 505 " in wire.rest().split(b"\r\n")[0]


STREAM = """
import os, time
def stream(gate: str, end: bool = True):
    yield "first"
    while not os.path.exists(gate):
        time.sleep(0.01)
    yield "second"
    while not end:
        time.sleep(0.01)
        yield "more"
"""


def test_a_generator_streams_item_by_item(gateway: GatewayInfo, tmp_path: Any) -> None:
    gate = tmp_path / "gate"
    with deployed(STREAM, serve=True, auth="public") as handle:
        body = {"gate": str(gate)}
        with httpx.stream("POST", run_url(gateway, handle), json=body) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            lines = (line for line in answer.iter_lines() if line)
            assert next(lines) == 'data: "first"'
            gate.touch()
            assert list(lines) == ['data: "second"']


def test_a_stream_whose_caller_goes_away_ends(
    gateway: GatewayInfo, tmp_path: Any, eventually: Any
) -> None:
    with deployed(STREAM, serve=True, auth="public", max_concurrency=1) as handle:
        (tmp_path / "gate").touch()
        body = {"gate": str(tmp_path / "gate"), "end": False}
        with httpx.stream("POST", run_url(gateway, handle), json=body) as answer:
            next(answer.iter_lines())
        eventually(lambda: in_flight(gateway, "stream") == 0, timeout=5)
        body["end"] = True  # the one thread of the runner is free again
        assert httpx.post(run_url(gateway, handle), json=body).status_code == 200


def test_a_runner_that_works_for_a_caller_that_went_away_is_busy_until_it_is_done(
    gateway: GatewayInfo, eventually: Any
) -> None:
    source = (
        "import os, time\ndef busy(gate: str = '') -> int:\n"
        "    while gate and not os.path.exists(gate):\n        time.sleep(0.01)\n    return 1\n"
    )
    options = {"serve": True, "auth": "public", "max_concurrency": 2, "min_concurrency": 1}
    with deployed(source, **options) as handle:
        gate = os.path.join(os.path.dirname(__file__), "..", ".gate-of-a-test")
        try:
            with Wire(gateway) as wire:
                wire.send(post("/run/tester/busy", {"gate": gate}))
                eventually(lambda: in_flight(gateway, "busy") == 1)
            # Another runner takes this: it does not stand behind work that nobody waits for.
            assert httpx.post(run_url(gateway, handle), json={}, timeout=10).json() == 1
            open(gate, "w").close()
            eventually(lambda: in_flight(gateway, "busy") == 0)
        finally:
            os.unlink(gate)


def test_an_async_function_whose_caller_goes_away_is_cancelled(
    gateway: GatewayInfo, eventually: Any
) -> None:
    source = (
        "import asyncio\nasync def patient(x: float) -> float:\n"
        "    await asyncio.sleep(x)\n    return x\n"
    )
    with deployed(source, serve=True, auth="public", max_concurrency=1) as handle:
        with Wire(gateway) as wire:
            wire.send(post("/run/tester/patient", {"x": 3600}))
            eventually(lambda: in_flight(gateway, "patient") == 1)
        eventually(lambda: in_flight(gateway, "patient") == 0, timeout=5)
        assert httpx.post(run_url(gateway, handle), json={"x": 0}).json() == 0
        assert "cancelled" not in str(handle.logs())


def test_a_caller_that_goes_away_in_the_queue_starts_no_runner(
    gateway: GatewayInfo, eventually: Any
) -> None:
    source = "import time\ndef queued(x: float) -> float:\n    time.sleep(x)\n    return x\n"
    with (
        deployed(source, serve=True, auth="public", scaling_delay=3600, max_concurrency=4) as app,
        control(gateway) as client,
    ):

        def status() -> dict[str, Any]:
            return dict(client.get("/api/apps/tester/queued").json())

        with Wire(gateway) as first:
            first.send(post("/run/tester/queued", {"x": 1.5}))
            eventually(lambda: status()["in_flight"] == 1)
            with Wire(gateway) as second:
                second.send(post("/run/tester/queued", {"x": 0}))
                eventually(lambda: status()["queued"] == 1)
            eventually(lambda: status()["queued"] == 0, timeout=1)
            assert first.response()[0] == 200
        assert len(client.get(f"/api/apps/tester/{app.name}/runners").json()) == 1


def test_a_connection_that_says_nothing_costs_nothing(gateway: GatewayInfo, act: str) -> None:
    idle = [socket.create_connection(("127.0.0.1", int(gateway.url[17:]))) for _ in range(200)]
    try:
        assert httpx.post(act, json={"n": 1}).json() == 1
    finally:
        for connection in idle:
            connection.close()


@pytest.fixture(scope="module")
def up(gateway: GatewayInfo) -> Iterator[str]:
    source = "def up(x: int = 0) -> int:\n    return x"
    with deployed(source, serve=True, auth="public"):
        yield "/run/tester/up"


H2C = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAoAAA")


@pytest.mark.parametrize(
    "offered",
    [
        H2C,
        ("Upgrade: h2c",),
        ("Connection: upgrade", "Upgrade:"),
        ("Connection: upgrade", "Connection: te", "Upgrade: h2c, websocket"),
    ],
)
def test_another_protocol_than_websocket_may_be_offered(gateway, up: str, offered) -> None:
    asked = post(up, {"x": 2}, *offered)
    with Wire(gateway) as wire:
        wire.send(asked * 3)  # one behind the other
        assert [wire.response()[::2] for _ in range(3)] == [(200, b"2")] * 3
        half = len(asked) - 4
        wire.send(asked[:half]).send(asked[half:]).send(post(up, {"x": 3}))
        assert [wire.response()[2] for _ in range(2)] == [b"2", b"3"]


def test_a_body_behind_an_offered_protocol_is_never_another_request(gateway, up: str) -> None:
    inner = "GET /run/smuggled HTTP/1.1\nHost: x\n\n"
    with Wire(gateway) as wire:
        wire.send(f"POST {up} HTTP/1.1\nHost: GATEWAY\nConnection: close, upgrade\nUpgrade: h2c\n")
        wire.send(f"Content-Length: {len(inner) + inner.count(chr(10))}\n\n{inner}")
        answer = wire.rest()
    assert answer.count(b"HTTP/1.1 ") == 1
    assert answer.startswith(b"HTTP/1.1 422 ")


@pytest.mark.parametrize("connection", ["Connection: Upgrade", "X-A: b"])
def test_a_websocket_is_not_asked_for_with_a_body(gateway, up: str, connection: str) -> None:
    with Wire(gateway) as wire:
        wire.send(post(up, {"x": 2}, connection, "Upgrade: websocket"))
        assert wire.head()[0] == 400
        assert wire.rest().count(b"HTTP/1.1 ") == 0


def test_a_head_that_does_not_end_is_refused(gateway: GatewayInfo) -> None:
    port = int(gateway.url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port)) as wire:
        wire.sendall(b"POST /run/a/b HTTP/1.1\r\nX: ")
        wire.settimeout(10)
        with contextlib.suppress(OSError):
            for _ in range(64):
                wire.sendall(b"a" * 65536)
        with contextlib.suppress(ConnectionResetError):
            assert wire.recv(65536).startswith(b"HTTP/1.1 431 ")
    assert httpx.get(f"{gateway.url}/api/gateway").status_code == 401
