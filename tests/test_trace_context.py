"""Whose trace a request belongs to: a valid one of its caller reaches the app's code."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from runner_bench import define, notebook
from serving import control, eventually, start_gateway_again
from webhook_target import OK, Target
from websockets.sync.client import connect

from fal_notebook import deploying, discovery
from fal_notebook.discovery import GatewayInfo
from fal_notebook.gateway import trace_context
from fal_notebook.gateway.trace_context import is_valid

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"
VALID = {"traceparent": PARENT, "tracestate": "a=1,b=2"}

TRACED = """
import asyncio, os
import fal_notebook as fal
from fastapi import HTTPException, WebSocket

class Traced(fal.App, max_multiplexing=8, max_concurrency=2, keep_alive=60):
    def told(self):
        headers = self.current_request.headers
        return {n: headers[n] for n in ("traceparent", "tracestate") if n in headers}

    @fal.endpoint("/")
    def tell(self, status: int = 200):
        if status != 200:
            raise HTTPException(status, "as asked")
        return self.told()

    @fal.endpoint("/pieces")
    def pieces(self):
        for _ in range(2):
            yield self.told()

    @fal.endpoint("/talk", is_websocket=True)
    async def talk(self, socket: WebSocket):
        await socket.accept()
        await socket.send_json(self.told())

    @fal.endpoint("/once")
    def once(self, path: str):
        with open(path, "a") as file:
            file.write(self.told()["traceparent"] + chr(10))
        if len(open(path).readlines()) == 1:
            os._exit(3)
        return self.told()
"""


@pytest.fixture(scope="module")
def traced(gateway: GatewayInfo) -> Iterator[Any]:
    with notebook():
        handle = deploying.deploy(define(TRACED)["Traced"], wait=True)
    yield handle
    handle.delete()


def queued(gateway: GatewayInfo, at: str, headers: dict[str, str], **body: Any) -> Any:
    """Return what a queued request to the app is answered."""
    with control(gateway) as client:
        submitted = client.post(f"/queue/tester/traced{at}", json=body, headers=headers).json()
        url = f"/queue/tester/traced/requests/{submitted['request_id']}"
        eventually(lambda: client.get(f"{url}/status").json()["status"] == "COMPLETED", 60)
        return client.get(url).json()


@pytest.mark.parametrize(
    ("traceparent", "valid"),
    [
        (PARENT, True),
        (PARENT[:-1] + "0", True),
        (f"01-{TRACE}-{SPAN}-01", True),
        (f"cc-{TRACE}-{SPAN}-01-what-comes-later", True),
        (f"cc-{TRACE}-{SPAN}-01.what", False),
        (f"{PARENT}-more", False),
        (f"ff-{TRACE}-{SPAN}-01", False),
        (f"00-{'0' * 32}-{SPAN}-01", False),
        (f"00-{TRACE}-{'0' * 16}-01", False),
        (PARENT.upper(), False),
        (PARENT[:-1], False),
        (PARENT + "\n", False),
        ("", False),
        ("nonsense", False),
    ],
)
def test_a_traceparent_is_valid_by_the_recommendation(traceparent: str, valid: bool) -> None:
    assert is_valid(traceparent.encode()) is valid


@given(st.lists(st.tuples(st.sampled_from([b"traceparent", b"tracestate", b"x"]), st.binary())))
def test_what_is_kept_names_one_valid_trace_or_none(headers: list[tuple[bytes, bytes]]) -> None:
    kept = trace_context.checked(headers, dict(headers))
    assert [h for h in kept if h[0] == b"x"] == [h for h in headers if h[0] == b"x"]
    named = trace_context.of(kept)
    assert not named or is_valid(named["traceparent"].encode("latin-1"))


def test_a_callers_trace_reaches_the_code_on_every_way(gateway: GatewayInfo, traced: Any) -> None:
    with control(gateway) as client:
        assert client.post("/run/tester/traced", json={}, headers=VALID).json() == VALID
        stream = client.post("/run/tester/traced/pieces", json={}, headers=VALID).text
    pieces = [line[6:] for line in stream.splitlines() if line.startswith("data: ")]
    assert [json.loads(piece) for piece in pieces] == [VALID, VALID]
    assert queued(gateway, "/", VALID) == VALID
    url = gateway.url.replace("http", "ws") + "/run/tester/traced/talk"
    headers = {"authorization": f"Bearer {gateway.token}", **VALID}
    with connect(url, additional_headers=headers, proxy=None) as socket:
        assert json.loads(socket.recv()) == VALID


@pytest.mark.parametrize(
    "headers",
    [
        [("traceparent", PARENT.upper()), ("tracestate", "a=1")],
        [("traceparent", PARENT), ("traceparent", PARENT)],
        [("tracestate", "a=1")],
        [],
    ],
    ids=["malformed", "two", "state alone", "none"],
)
def test_an_invalid_trace_is_dropped_and_none_is_invented(
    gateway: GatewayInfo, traced: Any, headers: list[tuple[str, str]]
) -> None:
    with control(gateway) as client:
        answer = client.post("/run/tester/traced", json={}, headers=httpx.Headers(headers))
    assert answer.json() == {}
    if len(headers) < 2 or headers[0] != headers[1]:
        assert queued(gateway, "/", dict(headers)) == {}


def test_a_server_of_ones_own_gets_it_too(gateway: GatewayInfo, shell: Any) -> None:
    raw = Path(__file__).with_name("raw_server.py")
    shell.run(
        f"%%fal_server traced_server exposed_port=8000 wait=true\n{sys.executable} {raw} {{port}}"
    )
    server = shell["traced_server"]
    lines = server.request("GET", "/x", headers=VALID).text.splitlines()
    assert f"traceparent: {PARENT}" in lines
    assert "tracestate: a=1,b=2" in lines
    dropped = server.request("GET", "/x", headers={**VALID, "traceparent": "00-1"}).text
    assert "trace" not in dropped


def test_every_attempt_has_the_submitters_trace_after_a_restart_too(
    own_gateway: Path, tmp_path: Path
) -> None:
    with notebook():
        handle = deploying.deploy(define(TRACED)["Traced"], wait=True)
    gateway, seen = discovery.ensure(own_gateway), tmp_path / "seen"
    answer = queued(gateway, "/once", VALID, path=str(seen))
    assert answer == VALID
    assert seen.read_text().splitlines() == [PARENT, PARENT]
    handle.scale(min_concurrency=0)
    with control(gateway) as client:
        body = {"path": str(seen)}
        told = client.post("/queue/tester/traced/once", json=body, headers=VALID).json()
    start_gateway_again(own_gateway, eventually)
    url = f"/queue/tester/traced/requests/{told['request_id']}"
    with control(discovery.ensure(own_gateway)) as client:
        eventually(lambda: client.get(f"{url}/status").json()["status"] == "COMPLETED", 60)
        assert client.get(url).json() == VALID


async def test_a_webhook_takes_the_trace_along(
    own_gateway: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Target(OK) as target:
        monkeypatch.setenv("FAL_NOTEBOOK_WEBHOOK_ALLOW", "127.0.0.1")
        gateway = await asyncio.to_thread(discovery.ensure, own_gateway)
        with notebook():
            deploy = asyncio.to_thread(deploying.deploy, define(TRACED)["Traced"], wait=True)
            await deploy
        headers = {**VALID, "authorization": f"Bearer {gateway.token}"}
        async with httpx.AsyncClient(base_url=gateway.url, trust_env=False) as client:
            for given_headers in (headers, {**headers, "traceparent": "nonsense"}):
                query = {"fal_webhook": target.url}
                url = "/queue/tester/traced"
                await client.post(url, json={}, params=query, headers=given_headers)
        while len(target.requests) < 2:
            await asyncio.sleep(0.02)
        told = [
            {name: request[1][name] for name in VALID if name in request[1]}
            for request in target.requests
        ]
        assert sorted(told, key=len) == [{}, VALID]
