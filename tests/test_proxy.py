"""What callers of ``/run`` are promised; a real gateway with real runners."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import httpx
import pytest
from fastapi import Body, FastAPI
from serving import Wire, deployed, post, run_url

from fal_notebook.discovery import GatewayInfo
from fal_notebook.handle import Handle


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


@pytest.mark.parametrize("keep_alive", [0, 1])
def test_a_short_keep_alive_counts_for_the_first_runner_too(shell, eventually, keep_alive) -> None:
    shell.run(
        f"%%fal_function serve=true auth=public keep_alive={keep_alive} wait=true\n"
        "def brief() -> int:\n    return 1\n"
    )
    brief = shell["brief"]
    assert httpx.post(brief.url, json={}).status_code == 200
    assert eventually(lambda: not brief.runners(), keep_alive + 4)
