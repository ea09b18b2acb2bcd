"""What callers of ``/run`` are promised; a real gateway with real runners."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import httpx
import psutil
import pytest
from fastapi import Body, FastAPI
from serving import Wire, control, deployed, post, run_url, with_key

from fal_notebook.discovery import GatewayInfo
from fal_notebook.handle import Handle

ACT = """
import os, time
from typing import Any
from fastapi import HTTPException, Response

def act(do: str = "echo", n: float = 0, text: str = "") -> Any:
    if do == "exit":
        os._exit(3)
    if do == "sleep":
        time.sleep(n)
    if do == "pid":
        return os.getpid()
    if do == "size":
        return len(text)
    if do == "big":
        return Response(b"x" * int(n), media_type="application/octet-stream")
    if do == "status":
        raise HTTPException(int(n), "as asked")
    return n
"""


@pytest.fixture(scope="module")
def act(gateway: GatewayInfo) -> Iterator[str]:
    """A public app that does what a request asks for, on one runner; its URL."""
    options = {"max_concurrency": 1, "max_multiplexing": 8, "keep_alive": 60, "min_concurrency": 1}
    with deployed(ACT, serve=True, auth="public", **options) as handle:
        yield run_url(gateway, handle)


def in_flight(gateway: GatewayInfo, name: str = "act") -> int:
    with control(gateway) as client:
        return int(client.get(f"/api/apps/tester/{name}").json()["in_flight"])


# --- bad input --------------------------------------------------------------------------------
def _fastapi() -> FastAPI:
    api = FastAPI()

    @api.post("/")
    def typed(x: Annotated[int, Body()], y: Annotated[str, Body(min_length=2)] = "ab") -> int:
        return x

    return api


BAD = (b'{"x": "a"}', b'{"x": 1.5, "y": "z"}', b'{"y": "abc"}', b'{"x": null}', b"{}", b"")


async def test_wrong_input_is_answered_as_fastapi_answers_it(gateway: GatewayInfo) -> None:
    source = (
        "from typing import Annotated\nfrom pydantic import Field\n"
        "def typed(x: int, y: Annotated[str, Field(min_length=2)] = 'ab') -> int:\n    return x\n"
    )
    transport = httpx.ASGITransport(_fastapi())
    with deployed(source, serve=True, auth="public") as handle:
        url = run_url(gateway, handle)
        async with (
            httpx.AsyncClient(transport=transport, base_url="http://model") as model,
            httpx.AsyncClient() as client,
        ):
            for body in BAD:
                headers = {"content-type": "application/json"}
                expected = await model.post("/", content=body, headers=headers)
                answer = await client.post(url, content=body, headers=headers)
                assert answer.status_code == expected.status_code == 422
                assert _places(answer) == _places(expected), body


async def test_what_is_no_json_is_answered_as_fastapi_answers_it(act: str) -> None:
    bodies = (b"{", b"nope", b"  ", b'{"do": "echo",}', b"[1", b'["\xc3\xa4", x]', b"1 2", b"\0")
    headers = {"content-type": "application/json"}
    transport = httpx.ASGITransport(_fastapi())
    async with (
        httpx.AsyncClient(transport=transport, base_url="http://model") as model,
        httpx.AsyncClient() as client,
    ):
        for body in bodies:
            expected = await model.post("/", content=body, headers=headers)
            answer = await client.post(act, content=body, headers=headers)
            assert answer.json() == expected.json(), body


def _places(answer: httpx.Response) -> set[tuple[str, str]]:
    return {(item["type"], json.dumps(item["loc"])) for item in answer.json()["detail"]}


@pytest.mark.parametrize("body", [b"{", b"nope", b"\xff\xfe", b'{"do": "echo",}', b"[1", b"\0"])
def test_malformed_json_is_422_in_fastapis_shape(act: str, body: bytes) -> None:
    answer = httpx.post(act, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    for item in answer.json()["detail"]:
        assert {"type", "loc", "msg", "input"} <= item.keys()
        assert item["loc"][0] == "body"


def test_what_is_not_there_is_404_and_other_methods_are_405(gateway: GatewayInfo, act: str) -> None:
    assert httpx.post(f"{gateway.url}/run/tester/nobody", json={}).status_code == 404
    assert httpx.post(f"{gateway.url}/run/tester").status_code == 404
    assert httpx.post(f"{act}/nowhere", json={}).json() == {"detail": "Path /nowhere not found"}
    for path, seen in (("//x%20y", "//x y"), ("/%2Fa?b=c", "//a"), ("/a/../b", "/a/../b")):
        with Wire(gateway) as wire:
            body = wire.send(post(f"/run/tester/act{path}", {})).response()[2]
            assert json.loads(body) == {"detail": f"Path {seen} not found"}
    for method in ("GET", "HEAD", "PUT"):
        answer = httpx.request(method, act)
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST"), method


@pytest.mark.parametrize("target", ["http://evil.test", "http://x@GATEWAY", "http://[::1", "http:"])
def test_a_target_on_another_host_is_refused(gateway: GatewayInfo, act: str, target: str) -> None:
    with Wire(gateway) as wire:
        status, _, body = wire.send(post(f"{target}/run/tester/act", {"n": 1})).response()
        assert (status, wire.rest()) == (400, b"")
    assert target == "http:" or b"names another host" in body or b"Invalid" in body


def test_a_target_in_absolute_form_is_served(gateway: GatewayInfo, act: str) -> None:
    with Wire(gateway) as wire:
        for _ in range(2):
            wire.send(post("http://GATEWAY/run/tester/act?a=b", {"n": 2}))
            assert wire.response()[::2] == (200, b"2.0")


def test_a_function_serves_no_websocket_and_the_log_says_nothing(
    gateway: GatewayInfo, act: str, private_state: Path
) -> None:
    log = private_state / "gateway.log"
    before = log.read_text()
    asked = "Host: GATEWAY\nConnection: Upgrade\nUpgrade: websocket\nSec-WebSocket-Version: 13\n"
    key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
    with Wire(gateway) as wire:
        wire.send(f"GET /run/tester/act HTTP/1.1\n{asked}{key}\n\n")
        status, headers, body = wire.response()
    assert (status, headers["connection"]) == (405, "close")
    assert json.loads(body) == {"detail": "Method Not Allowed"}
    assert log.read_text() == before


def test_what_the_gateway_refuses_has_fals_error_type(gateway: GatewayInfo, act: str) -> None:
    wrong = with_key("a:b")
    for answer in (
        httpx.post(f"{gateway.url}/run/tester/nobody", json={}),
        httpx.post(f"{gateway.url}/run/tester"),
        httpx.post(act, json={}, headers=wrong),
        httpx.post(act, json={}, headers={"origin": "http://evil.test"}),
        httpx.post(act, content=b"", headers={"content-type": PICKLE}),
        httpx.get(f"{gateway.url}/api/apps"),
    ):
        assert answer.status_code in (401, 403, 404, 415)
        assert answer.json()["error_type"] == answer.headers["x-fal-error-type"] == "bad_request"


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
                detail = "the app's runners fail to start; its owner sees why in its logs"
                assert (answer.status_code, answer.json()["detail"]) == (503, detail)
        for headers in (dict(owner.headers), with_key(admin["key"])):
            assert "hunter2" in httpx.post(url, json={}, headers=headers, timeout=20).text
        for made in (key, admin):
            owner.delete(f"/api/keys/{made['id']}")


def test_a_head_request_leaves_a_usable_connection(gateway: GatewayInfo, act: str) -> None:
    with Wire(gateway) as wire:
        status, headers = wire.send(
            "HEAD /run/tester/act/health HTTP/1.1\nHost: GATEWAY\n\n"
        ).head()
        assert (status, int(headers["content-length"]) > 0) == (200, True)
        assert wire.send(post("/run/tester/act", {"n": 2})).response()[2] == b"2.0"


# --- who may call -----------------------------------------------------------------------------
@pytest.mark.parametrize("serve", [True, False])
@pytest.mark.parametrize("auth", ["public", "shared", "private"])
@pytest.mark.parametrize("team", [None, "other-team"])
def test_who_may_call(gateway: GatewayInfo, auth: str, serve: bool, team: str | None) -> None:
    with control(gateway) as client:
        key = client.post("/api/keys").json()
        source = f"def open_{auth}() -> int:\n    return 1\n"
        extra = {"owner": team} if team else {}
        with deployed(source, auth=auth, serve=serve, **extra) as handle:
            url = run_url(gateway, handle)
            owner = {"authorization": f"Bearer {gateway.token}"}
            public, shared = serve and auth == "public", serve and auth == "shared"
            expected = {
                "owner": 200,
                "key": 200 if not team or public or shared else 403,
                "no key": 200 if public else 401,
                "wrong key": 401,
            }
            assert expected == {
                "owner": httpx.post(url, json={}, headers=owner).status_code,
                "key": httpx.post(url, json={}, headers=with_key(key["key"])).status_code,
                "no key": httpx.post(url, json={}).status_code,
                "wrong key": httpx.post(url, json={}, headers=with_key("a:b")).status_code,
            }
        client.delete(f"/api/keys/{key['id']}")


def test_a_revoked_key_is_refused(gateway: GatewayInfo) -> None:
    source = "def closed() -> int:\n    return 1\n"
    with control(gateway) as client, deployed(source, serve=True) as handle:
        url, key = run_url(gateway, handle), client.post("/api/keys").json()
        assert httpx.post(url, json={}, headers=with_key(key["key"])).status_code == 200
        client.delete(f"/api/keys/{key['id']}")
        answer = httpx.post(url, json={}, headers=with_key(key["key"]))
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Key")


PICKLE = "application/vnd.fal-notebook.pickle"


@pytest.mark.parametrize(
    "kind",
    [PICKLE, PICKLE.upper(), f"{PICKLE}; charset=utf-8", f"{PICKLE} ;a=b", f"a/b, {PICKLE}"],
)
def test_a_pickle_from_anyone_but_the_owner_never_reaches_a_runner(
    gateway: GatewayInfo, act: str, kind: str
) -> None:
    with control(gateway) as client:
        key = client.post("/api/keys", params={"scope": "ADMIN"}).json()
        for headers in ({}, with_key(key["key"])):
            headers = {**headers, "content-type": kind}
            assert httpx.post(act, content=b"\x80", headers=headers).status_code == 415
        client.delete(f"/api/keys/{key['id']}")


def test_headers_that_can_be_read_in_two_ways_are_refused(gateway: GatewayInfo, act: str) -> None:
    for name, value in (
        ("Host", "GATEWAY"),
        ("Authorization", "Key a:b"),
        ("Content-Type", "application/json"),
        ("Origin", "http://GATEWAY"),
    ):
        lines = (f"{name}: {value}",) * (1 if name == "Host" else 2)
        with Wire(gateway) as wire:
            assert wire.send(post("/run/tester/act", {}, *lines)).response()[0] == 400, name


@pytest.mark.parametrize("path", ["/run/tester/act", "/metrics", "/api/apps", "/nowhere"])
def test_no_web_page_gets_through(gateway: GatewayInfo, act: str, path: str) -> None:
    port = gateway.url.rsplit(":", 1)[1]
    owner = f"Authorization: Bearer {gateway.token}"
    method = "POST" if path.startswith("/run") else "GET"

    def status(host: str, *headers: str) -> int:
        lines = [f"{method} {path} HTTP/1.1", *([f"Host: {host}"] if host else []), owner]
        with Wire(gateway) as wire:
            wire.send("\n".join([*lines, *headers, "Content-Length: 2"]) + "\n\n{}")
            return wire.head()[0]

    for host in ("127.0.0.1", "localhost", "LOCALHOST", "[::1]"):
        assert status(f"{host}:{port}") in (200, 404), host
    for host in ("evil.test", f"evil.test:{port}", "127.0.0.1:1", "127.0.0.1", f"0.0.0.0:{port}"):
        assert status(host) == 403, host
    assert status("") in (400, 403)
    for origin in ("http://evil.test", "null", "", "https://localhost:" + port):
        assert status(f"localhost:{port}", f"Origin: {origin}") == 403, origin
    assert status(f"localhost:{port}", f"Origin: http://localhost:{port}") in (200, 404)


# --- bodies -----------------------------------------------------------------------------------
LIMIT = 100 * 1024 * 1024


def test_a_declared_body_above_the_limit_is_refused_unread(gateway: GatewayInfo, act: str) -> None:
    head = f"POST /run/tester/act HTTP/1.1\nHost: GATEWAY\nContent-Length: {LIMIT + 1}\n"
    with Wire(gateway) as wire:
        status, _, body = wire.send(head + "\n").response()
        assert (status, b"max_body" in body) == (413, True)
    with Wire(gateway) as wire:  # nor is the caller told to go on
        assert wire.send(head + "Expect: 100-continue\n\n").response()[0] == 413


def test_a_chunked_body_above_the_limit_is_refused_on_the_way(
    gateway: GatewayInfo, act: str
) -> None:
    piece = b"%x\r\n" % 2**20 + b" " * 2**20 + b"\r\n"
    with Wire(gateway) as wire:
        wire.send("POST /run/tester/act HTTP/1.1\nHost: GATEWAY\nTransfer-Encoding: chunked\n\n")
        for _ in range(101):
            wire.send(piece)
        assert wire.head()[0] == 413
    assert httpx.post(act, json={"n": 1}).json() == 1


def test_a_body_above_the_limit_has_one_answer_however_that_is_found(
    gateway: GatewayInfo, act: str
) -> None:
    head = "POST /run/tester/act HTTP/1.1\nHost: GATEWAY\n"
    with Wire(gateway) as declared, Wire(gateway) as chunked:
        _, first, why = declared.send(f"{head}Content-Length: {LIMIT + 1}\n\n").response()
        chunked.send(f"{head}Transfer-Encoding: chunked\n\n").send(b"%x\r\n" % (LIMIT + 2**20))
        for _ in range(101):
            chunked.send(b" " * 2**20)
        _, second, same = chunked.response()
    assert why == same
    assert json.loads(why)["error_type"] == first["x-fal-error-type"] == "bad_request"
    assert first.pop("x-fal-request-id") != second.pop("x-fal-request-id")
    assert first == second


@pytest.mark.parametrize(
    ("coding", "status"),
    [
        ("gzip, chunked", 501),
        ("gzip,chunked", 501),
        ("chunked, chunked", 400),
        ("gzip\nTransfer-Encoding: chunked", 400),
        ("identity", 400),
        ("gzip", 400),
        ("Chunked", 200),
    ],
)
def test_of_transfer_codings_only_chunked_is_taken(
    gateway: GatewayInfo, act: str, coding: str, status: int
) -> None:
    with Wire(gateway) as wire:
        head = f"POST /run/tester/act HTTP/1.1\nHost: GATEWAY\nTransfer-Encoding: {coding}\n\n"
        wire.send(f'{head}8\n{{"n": 4}}\n0\n\n')
        assert wire.head()[0] == status
        assert status == 200 or wire.rest().count(b"HTTP/1.1") == 0


def test_a_caller_that_waits_for_100_continue_gets_it(gateway: GatewayInfo, act: str) -> None:
    with Wire(gateway) as wire:
        head = "POST /run/tester/act HTTP/1.1\nHost: GATEWAY\nContent-Length: 8\n"
        wire.send(head + "Expect: 100-continue\n\n")
        assert b" 100 " in wire.until(b"\r\n\r\n")
        assert wire.send('{"n": 4}').response()[::2] == (200, b"4.0")


def test_large_bodies_pass_both_ways_in_flat_memory(gateway: GatewayInfo, act: str) -> None:
    size = 60 * 1000 * 1000
    text = json.dumps({"do": "size", "text": "x" * size}).encode()
    process = psutil.Process(gateway.pid)
    before, peak = process.memory_info().rss, 0
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, process.memory_info().rss)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        assert httpx.post(act, content=text, timeout=60).json() == size
        pieces = (text[i : i + 100_000] for i in range(0, len(text), 100_000))
        assert httpx.post(act, content=pieces, timeout=60).json() == size
        with httpx.stream("POST", act, json={"do": "big", "n": size}, timeout=60) as answer:
            assert sum(len(part) for part in answer.iter_raw()) == size
    finally:
        done.set()
        watching.join()
    assert peak - before < 25_000_000


def test_a_slow_upload_holds_no_slot(gateway: GatewayInfo, eventually: Any) -> None:
    source = "def single(x: int) -> int:\n    return x\n"
    with (
        deployed(source, serve=True, auth="public", max_concurrency=1) as handle,
        Wire(gateway) as slow,
    ):
        slow.send('POST /run/tester/single HTTP/1.1\nHost: GATEWAY\nContent-Length: 8\n\n{"x"')
        assert httpx.post(run_url(gateway, handle), json={"x": 1}, timeout=5).json() == 1
        assert in_flight(gateway, "single") == 0
        assert slow.send(": 2}").response()[2] == b"2"


# --- connections ------------------------------------------------------------------------------
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


# --- runners that fail ------------------------------------------------------------------------
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


def test_a_connection_that_says_nothing_costs_nothing(gateway: GatewayInfo, act: str) -> None:
    idle = [socket.create_connection(("127.0.0.1", int(gateway.url[17:]))) for _ in range(200)]
    try:
        assert httpx.post(act, json={"n": 1}).json() == 1
    finally:
        for connection in idle:
            connection.close()


def test_the_handle_works_under_another_owner(gateway: GatewayInfo) -> None:
    with deployed("def teamwork(x: int) -> int:\n    return x\n", owner="a-team") as handle:
        assert isinstance(handle, Handle)
        assert handle(3) == 3


def test_the_openapi_of_an_app_at_zero_starts_no_runner(shell, eventually) -> None:
    shell.run(
        "%%fal_function serve=true auth=public keep_alive=0 wait=true\n"
        "def asked(x: int) -> int:\n    return x\n"
    )
    asked = shell["asked"]
    assert asked(1) == 1
    assert eventually(lambda: not asked.runners())
    reply = httpx.get(f"{asked.url}/openapi.json")
    assert reply.json() == asked.openapi()
    assert asked.runners() == []


def test_a_caller_that_reads_only_after_it_has_sent_all_sees_413(
    gateway: GatewayInfo, shell
) -> None:
    shell.run(
        "%%fal_function serve=true auth=public wait=true\ndef big(x: str) -> int:\n    return 1\n"
    )
    body = b'{"x":"' + b"x" * 105_000_000 + b'"}'
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(shell["big"].url, data=body)
    with refused.value as answer:
        assert (answer.status, b"max_body" in answer.read()) == (413, True)


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


@pytest.mark.parametrize("keep_alive", [0, 1])
def test_a_short_keep_alive_counts_for_the_first_runner_too(shell, eventually, keep_alive) -> None:
    shell.run(
        f"%%fal_function serve=true auth=public keep_alive={keep_alive} wait=true\n"
        "def brief() -> int:\n    return 1\n"
    )
    brief = shell["brief"]
    assert httpx.post(brief.url, json={}).status_code == 200
    assert eventually(lambda: not brief.runners(), keep_alive + 4)
