"""The gateway below Jupyter's base URL, with a real Jupyter server: who may, and what passes."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
import websockets.sync.client
from jupyter_servers import TOKEN, Jupyter, jupyter
from serving import deployed, eventually, kill_gateway

from fal_notebook import discovery
from fal_notebook.discovery import GatewayInfo
from fal_notebook.handle import Handle

VERBS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
PATHS = ("/api/apps", "/run/tester/seen/a", "/queue/tester/seen", "/storage/x", "/metrics", "/")
PREFIX = "/user/ann/fal"

# Tells what reached it, and answers with what it must not say for Jupyter's origin.
SEEN = """
import json
from fastapi import Request, Response
async def seen(request: Request):
    if request.query_params.get("size"):
        return Response(bytes(int(request.query_params["size"])))
    head = dict(request.headers)
    told = {"query": str(request.query_params), "headers": head, "size": len(await request.body())}
    answer = Response(json.dumps(told))
    answer.set_cookie("_xsrf", "stolen")
    answer.headers["www-authenticate"] = "Basic"
    answer.headers["clear-site-data"] = "*"
    answer.headers["access-control-allow-origin"] = "*"
    answer.headers["x-content-type-options"] = "sniff"
    answer.headers["x-own"] = "kept"
    return answer
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jupyter]:
    """A Jupyter server as JupyterHub starts it: with a base URL."""
    with jupyter(tmp_path_factory.mktemp("jupyter"), base_url="/user/ann/") as found:
        yield found


@pytest.fixture(scope="module")
def seen(gateway: GatewayInfo) -> Iterator[Handle]:
    with deployed(SEEN, keep_alive=60) as handle:
        yield handle


@pytest.fixture
def visitor(server: Jupyter) -> Iterator[httpx.Client]:
    """Somebody who has logged in and has cookies, as a browser has."""
    with httpx.Client(base_url=server.url, timeout=30, follow_redirects=True) as client:
        client.get("/tree", params={"token": TOKEN})
        client.headers["X-XSRFToken"] = client.cookies["_xsrf"]
        yield client


# --- who may ----------------------------------------------------------------------------------
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("verb", VERBS)
def test_nobody_passes_without_logging_in(server: Jupyter, verb: str, path: str) -> None:
    with server.client(token=None) as nobody, server.client(token="wrong") as stranger:
        assert nobody.request(verb, f"/fal{path}").status_code == 403
        assert stranger.request(verb, f"/fal{path}").status_code == 403


def test_every_verb_is_for_those_who_are_logged_in() -> None:
    from fal_notebook.server.handler import GatewayHandler

    for verb in VERBS:
        method = getattr(GatewayHandler, verb.lower())
        assert not getattr(method, "__allow_unauthenticated", False)
        assert method is GatewayHandler._relayed


def test_a_login_counts_as_a_token_does(visitor: httpx.Client, server: Jupyter) -> None:
    assert visitor.get("/fal/api/gateway").json()["owner"] == "tester"
    with server.client() as client:
        assert client.get("/fal/api/gateway").json() == visitor.get("/fal/api/gateway").json()


def test_what_changes_something_needs_the_xsrf_value(visitor: httpx.Client, seen: Handle) -> None:
    path = f"/fal/run/tester/{seen.name}"
    assert visitor.post(path, json={}).status_code == 200
    del visitor.headers["X-XSRFToken"]
    refused = visitor.post(path, json={})
    assert (refused.status_code, "_xsrf" in refused.json()["detail"]) == (403, True)


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "null"}],
)
def test_other_pages_may_not_act_for_the_user(
    visitor: httpx.Client, seen: Handle, headers: dict[str, str]
) -> None:
    for verb in ("GET", "POST"):
        refused = visitor.request(verb, f"/fal/run/tester/{seen.name}", headers=headers)
        assert refused.status_code in (403, 404)


# --- what an app gets to see, and what it may say ---------------------------------------------
def test_an_app_sees_nothing_of_jupyter(visitor: httpx.Client, seen: Handle) -> None:
    sent = {"Authorization": "Key some:key", "Referer": f"http://x/?token={TOKEN}", "X-Mine": "1"}
    sent |= {"X-CSRFToken": visitor.cookies["_xsrf"], "X-JupyterHub-Token": "hub-secret"}
    xsrf = visitor.cookies["_xsrf"]
    query = f"token={TOKEN}&%74oken={TOKEN}&_xsrf={xsrf}&_%78srf={xsrf}&mine=2"
    answer = visitor.post(f"/fal/run/tester/{seen.name}?{query}", headers=sent)
    told = answer.json()
    assert (told["query"], told["headers"]["x-mine"]) == ("mine=2", "1")
    everything = json.dumps(told)
    for secret in (TOKEN, "some:key", "hub-secret", *visitor.cookies.values()):
        assert secret not in everything
    assert not {"cookie", "authorization", "x-xsrftoken", "referer"} & told["headers"].keys()


def test_a_token_of_the_apps_own_reaches_it(visitor: httpx.Client, seen: Handle) -> None:
    answer = visitor.post(f"/fal/run/tester/{seen.name}", params={"token": "of the app"})
    assert answer.json()["query"] == "token=of+the+app"


def test_an_app_says_nothing_for_jupyters_origin(visitor: httpx.Client, seen: Handle) -> None:
    answer = visitor.post(f"/fal/run/tester/{seen.name}")
    assert answer.headers["content-security-policy"] == "sandbox"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-own"] == "kept"
    forbidden = {"set-cookie", "www-authenticate", "clear-site-data"}
    assert not (forbidden | {"access-control-allow-origin"}) & answer.headers.keys()


def test_the_browser_never_gets_the_owners_token(
    visitor: httpx.Client, gateway: GatewayInfo, server: Jupyter, seen: Handle
) -> None:
    answers = [visitor.get("/fal/api/gateway"), visitor.post(f"/fal/run/tester/{seen.name}")]
    for answer in answers:
        assert gateway.token not in answer.text + str(answer.headers)
    assert gateway.token not in server.log.read_text()


def test_keys_of_callers_are_not_logged(server: Jupyter, seen: Handle, visitor: Any) -> None:
    path = f"/fal/run/tester/{seen.name}?fal_key=hidden-1"
    with server.client() as client, server.client(token=None) as nobody:
        client.get(path, headers={"X-Key": "hidden-2"})
        client.get("/fal/run/tester/absent?fal_key=hidden-1")
        assert nobody.get(path).status_code == 403
    assert visitor.get(path, headers={"Origin": "https://evil.example"}).status_code == 403
    del visitor.headers["X-XSRFToken"]
    assert visitor.post(f"{path}&token={TOKEN}x").status_code == 403
    logged = server.log.read_text()
    assert "requests from other web pages are refused" in logged
    assert not re.search(f"hidden|{TOKEN}x", logged)


# --- what passes ------------------------------------------------------------------------------
def test_a_large_body_passes_both_ways_without_being_held(
    visitor: httpx.Client, server: Jupyter, seen: Handle
) -> None:
    size = 64_000_000
    own = next(c.pid for c in psutil.net_connections("tcp") if _listens(c, server))
    before = psutil.Process(own).memory_info().rss

    def pieces() -> Iterator[bytes]:
        for _ in range(size // 1_000_000):
            yield bytes(1_000_000)

    path = f"/fal/run/tester/{seen.name}"
    assert visitor.post(path, content=pieces()).json()["size"] == size
    assert len(visitor.post(path, params={"size": size}).content) == size
    assert psutil.Process(own).memory_info().rss - before < 32_000_000


def _listens(connection: Any, server: Jupyter) -> bool:
    port = urlsplit(server.url).port
    return connection.status == "LISTEN" and connection.laddr.port == port


def test_events_come_as_they_happen(visitor: httpx.Client, gateway: GatewayInfo) -> None:
    query = {"owner": "tester", "app": "eventful"}
    with visitor.stream("GET", "/fal/api/events", params=query) as events:
        lines = events.iter_lines()
        with deployed("def eventful(): return 1", name="eventful"):
            told = next(line for line in lines if line.startswith("data: "))
    assert json.loads(told[6:])["app"] == "eventful"


def test_a_browser_that_leaves_cancels_its_request(visitor: httpx.Client) -> None:
    source = "import asyncio\nasync def naps(): await asyncio.sleep(30)"
    with deployed(source) as handle:
        with pytest.raises(httpx.ReadTimeout):
            visitor.post(f"/fal/run/tester/{handle.name}", timeout=1)
        eventually(lambda: handle.status()["in_flight"] == 0)


def test_a_websocket_passes(server: Jupyter, visitor: httpx.Client) -> None:
    source = """
import fal_notebook as fal
class Echo(fal.App):
    @fal.endpoint("/ws", is_websocket=True)
    async def ws(self, socket) -> None:
        await socket.accept()
        async for text in socket.iter_text():
            await socket.send_text(text[::-1])
def echo(): return 1
"""
    from serving import defined

    from fal_notebook import deploying

    cls = defined(source).__globals__["Echo"]
    handle = deploying.deploy(cls, wait=True, name="echo-socket")
    try:
        url = f"{server.url.replace('http', 'ws')}/fal/run/tester/{handle.name}/ws"
        cookies = "; ".join(f"{k}={v}" for k, v in visitor.cookies.items())
        own = {"Cookie": cookies}
        with websockets.sync.client.connect(url, additional_headers=own) as socket:
            for text in ("hello", "x" * 100_000):
                socket.send(text)
                assert socket.recv(timeout=10) == text[::-1]
        for wrong in ({}, {**own, "Origin": "https://evil.example"}):
            with pytest.raises(websockets.exceptions.InvalidStatus) as refused:
                websockets.sync.client.connect(url, additional_headers=wrong)
            assert refused.value.response.status_code in (403, 404)
    finally:
        handle.delete()


def test_a_second_request_does_not_slip_through_behind_the_first(
    server: Jupyter, seen: Handle
) -> None:
    address = urlsplit(server.url)
    first = f"GET {PREFIX}/api/gateway?token={TOKEN} HTTP/1.1\r\nHost: {address.netloc}\r\n\r\n"
    second = "DELETE /api/apps/tester/seen HTTP/1.1\r\nHost: x\r\n\r\n"
    with socket.create_connection((str(address.hostname), int(address.port or 80))) as wire:
        wire.sendall((first + second).encode())
        wire.settimeout(10)
        received = b"".join(iter(lambda: wire.recv(65536), b""))
    assert received.count(b"HTTP/1.1 ") == 1
    assert seen.status()["name"] == seen.name


def test_what_is_moved_stays_behind_jupyter(visitor: httpx.Client) -> None:
    source = """
from fastapi import Response
def moved():
    import os
    url = os.environ["FAL_NOTEBOOK_URL"] + "/storage/x"
    return Response(status_code=302, headers={"location": url})
"""
    with deployed(source) as handle:
        answer = visitor.post(f"/fal/run/tester/{handle.name}", follow_redirects=False)
        assert answer.headers["location"] == f"{PREFIX}/storage/x"


# --- the gateway comes and goes ---------------------------------------------------------------
def test_the_gateway_is_started_on_demand(own_gateway: Path, tmp_path: Path) -> None:
    with jupyter(tmp_path / "jupyter") as server, server.client() as client:
        first = client.get("/fal/api/gateway").json()
        kill_gateway(own_gateway)
        second = client.get("/fal/api/gateway").json()
    assert (first["id"], first["pid"] != second["pid"]) == (second["id"], True)
    info = discovery.find(own_gateway)
    assert info is not None
    assert info.pid == second["pid"]


def test_a_gateway_that_hangs_is_one_sentence(own_gateway: Path, tmp_path: Path) -> None:
    with jupyter(tmp_path / "jupyter") as server, server.client() as client:
        pid = client.get("/fal/api/gateway").json()["pid"]
        os.kill(pid, signal.SIGSTOP)
        try:
            answer = client.get("/fal/api/apps")
        finally:
            os.kill(pid, signal.SIGCONT)
    assert (answer.status_code, "has not answered" in answer.json()["detail"]) == (504, True)


def test_a_state_folder_that_is_none_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FAL_NOTEBOOK_STATE", str(tmp_path / "file"))
    with jupyter(tmp_path / "jupyter") as server, server.client() as client:
        answer = client.get("/fal/api/gateway")
    assert (answer.status_code, "cannot be made" in answer.json()["detail"]) == (503, True)


def test_a_gateway_that_cannot_start_is_one_sentence(own_gateway: Path, tmp_path: Path) -> None:
    (own_gateway / "store.db").mkdir()
    with jupyter(tmp_path / "jupyter") as server, server.client() as client:
        answer = client.get("/fal/api/gateway")
    (own_gateway / "store.db").rmdir()
    assert answer.status_code == 503
    assert answer.json()["detail"].startswith("the gateway did not start: ")
