"""Direct Server Mode: a server of the user's own, started by a cell, gets the traffic as it is."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from socket import SHUT_RDWR
from typing import Any

import httpx
import psutil
import pytest
from IPython.core.error import UsageError
from serving import Wire, control
from websockets.asyncio.client import connect as async_connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from fal_notebook import discovery
from fal_notebook.discovery import GatewayInfo
from fal_notebook.exceptions import DeployError, GatewayUnavailableError
from fal_notebook.server_command import ServerCommand
from fal_notebook.server_handle import ServerHandle

Eventually = Callable[[Callable[[], Any]], Any]
RAW = f"{sys.executable} {Path(__file__).with_name('raw_server.py')}"


def cell(name: str, command: str, **options: Any) -> str:
    given = {"exposed_port": 8000, "wait": "true", **options}
    line = " ".join(f"{key}={value}" for key, value in given.items())
    return f"%%fal_server {name} {line}\n{command}\n"


@pytest.fixture(scope="module")
def raw(gateway: GatewayInfo) -> Iterator[ServerHandle]:
    """One raw server that most tests share."""
    from conftest import Shell

    shell = Shell()
    shell.run(cell("raw", f"{RAW} {{port}}", max_multiplexing=8))
    handle: ServerHandle = shell["raw"]
    yield handle
    handle.delete()


def send(gateway: GatewayInfo, text: str, path: str) -> tuple[Wire, str]:
    """Send a request line and headers through the gateway; AUTH becomes the owner's token."""
    wire = Wire(gateway)
    text = text.replace("PATH", f"/run/tester/raw{path}")
    wire.send(text.replace("AUTH", f"Authorization: Bearer {gateway.token}"))
    return wire, wire.host


# --- what goes through ---------------------------------------------------------------------------
def test_a_cell_with_a_command_answers_through_run(shell: Any) -> None:
    shell.run(
        "%%fal_server files exposed_port=8000 wait=true\n"
        f"echo hello > hello.txt; {sys.executable} -m http.server $PORT --bind 127.0.0.1"
    )
    answer = shell["files"].request("GET", "/hello.txt")
    assert (answer.status_code, answer.text) == (200, "hello\n")


def test_an_app_that_was_made_in_the_notebook_is_served_by_the_cells_function(shell: Any) -> None:
    shell.run(
        "import uvicorn\nfrom fastapi import FastAPI\napp = FastAPI()\napp.state.answer = 42\n"
        "@app.get('/answer')\ndef answer(): return app.state.answer\n"
    )
    run = "def main(port): uvicorn.run(app, port=port)"
    shell.run(cell("made", run, lang="python"))
    assert shell["made"].request("GET", "/answer").json() == 42
    shell.run(cell("made", run, lang="python"))
    assert shell["made"].status()["number"] == 1


def test_path_query_and_headers_arrive_as_they_were_sent(
    gateway: GatewayInfo, raw: ServerHandle
) -> None:
    lines = "X-B: 2\nContent-Length: 3\nX-A:  one  two\nCookie: a=1\nX-B: 1"
    path = "/a%2Fb//c/../%7e?x=1&x=%20&y"
    wire, host = send(gateway, f"PUT PATH HTTP/1.1\nHost: GATEWAY\nAUTH\n{lines}\n\nabc", path)
    with wire:
        status, _, body = wire.response()
    head, _, content = body.decode().partition("\r\n\r\n")
    first, *got = head.split("\r\n")
    sent = [
        f"host: {host}",
        "x-b: 2",
        "content-length: 3",
        "x-a: one  two",
        "cookie: a=1",
        "x-b: 1",
    ]
    assert (status, first, content) == (200, f"PUT {path} HTTP/1.1", "abc")
    assert got[: len(sent)] == sent
    added = [line.partition(":")[0] for line in got[len(sent) :]]
    told = "x-fal-object-lifecycle-preference"
    assert added == ["x-fal-request-id", told, "x-fal-caller-user-id", "x-fal-endpoint"]


def test_a_request_without_a_body_has_no_length(raw: ServerHandle) -> None:
    assert "content-length" not in raw.request("GET", "/echo").text


def test_a_callers_own_fal_headers_do_not_reach_the_server(raw: ServerHandle) -> None:
    forged = {"x-fal-runner-secret": "a", "x-fal-caller-user-id": "b", "x-fal-no-retry": "1"}
    text = raw.request("GET", "/echo", headers=forged).text
    assert "secret" not in text
    assert "x-fal-caller-user-id: tester" in text
    assert "x-fal-no-retry: 1" in text


def test_a_chunked_body_stays_chunked(gateway: GatewayInfo, raw: ServerHandle) -> None:
    head = "POST PATH HTTP/1.1\nHost: GATEWAY\nAUTH\nTransfer-Encoding: chunked\n\n"
    wire, _ = send(gateway, head + "3\nxyz\n2\nuv\n0\n\n", "/echo")
    with wire:
        body = wire.response()[2]
    got, _, content = body.partition(b"\r\n\r\n")
    assert b"transfer-encoding: chunked" in got
    assert b"content-length" not in got
    assert re.sub(rb"[\da-f]+\r\n|\r\n", b"", content) == b"xyzuv"


def test_what_follows_a_body_is_no_header(gateway: GatewayInfo, raw: ServerHandle) -> None:
    head = "POST PATH HTTP/1.1\nHost: GATEWAY\nAUTH\nTransfer-Encoding: chunked\n\n"
    wire, _ = send(gateway, head + "3\nxyz\n0\nX-Late: 1\nExpect: 100-continue\n\n", "/echo")
    with wire:
        status, _, got = wire.response()
    assert (status, b"\r\n\r\n3\r\nxyz\r\n" in got) == (200, True)
    assert b"x-late" not in got
    assert b"expect" not in got


@pytest.mark.parametrize("chunked", [True, False])
def test_bodies_of_any_size_go_both_ways(raw: ServerHandle, chunked: bool) -> None:
    size = 120 * 1024 * 1024  # above max_body, which is for functions

    async def pieces() -> Any:
        for _ in range(size // 2**20):
            yield bytes(2**20)

    headers = {} if chunked else {"content-length": str(size)}
    answer = raw.request("POST", "/count", content=pieces(), headers=headers, timeout=60)
    assert answer.text == str(size)
    assert len(raw.request("GET", f"/big?{size}", timeout=60).content) == size


def test_an_answer_comes_as_it_is_and_no_redirect_is_followed(raw: ServerHandle) -> None:
    answer = raw.request("GET", "/answer")
    assert (answer.status_code, answer.text) == (302, "there")
    names = [(k.lower(), v) for k, v in answer.headers.multi_items() if k != "x-fal-request-id"]
    assert names == [
        ("location", "http://elsewhere.invalid/"),
        ("set-cookie", "a=1"),
        ("x-b", "2"),
        ("set-cookie", "b=2"),
        ("content-length", "5"),
    ]


def test_events_come_as_they_are_sent(gateway: GatewayInfo, raw: ServerHandle) -> None:
    with control(gateway) as client, client.stream("GET", "/run/tester/raw/events") as answer:
        lines = answer.iter_lines()
        assert next(lines) == "data: 1"
        raw.request("GET", "/go")
        assert list(lines) == ["", "data: 2", ""]


def test_the_server_says_whether_it_wants_the_body(gateway: GatewayInfo, raw: ServerHandle) -> None:
    head = "POST PATH HTTP/1.1\nHost: GATEWAY\nAUTH\nContent-Length: 3\nExpect: 100-continue\n\n"
    wire, _ = send(gateway, head, "/asked")
    with wire:
        assert wire.until(b"\r\n\r\n").startswith(b"HTTP/1.1 100 ")
        body = wire.send("abc").response()[2]
    assert b"expect: 100-continue" in body
    assert body.endswith(b"abc")


def test_a_body_that_the_server_does_not_want_is_not_asked_for(
    gateway: GatewayInfo, raw: ServerHandle
) -> None:
    head = "POST PATH HTTP/1.1\nHost: GATEWAY\nAUTH\nContent-Length: 3\nExpect: 100-continue\n\n"
    wire, _ = send(gateway, head, "/unwanted")
    with wire:
        status, headers, body = wire.response()
    assert (status, body, headers["connection"]) == (417, b"no", "close")


def test_a_server_may_refuse_a_body_that_is_on_its_way(
    gateway: GatewayInfo, raw: ServerHandle
) -> None:
    size = 20 * 2**20
    head = f"POST PATH HTTP/1.1\nHost: GATEWAY\nAUTH\nContent-Length: {size}\n\n"
    for _ in range(20):
        wire, _ = send(gateway, head, "/early")
        with wire:
            with contextlib.suppress(OSError):  # the gateway need not take all of it
                wire.send(bytes(size))
            status, _, body = wire.response()
        assert (status, body) == (413, b"too much")


def test_a_server_that_is_silent_gets_the_body_after_a_while(
    gateway: GatewayInfo, raw: ServerHandle
) -> None:
    head = "POST PATH HTTP/1.1\nHost: GATEWAY\nAUTH\nContent-Length: 3\nExpect: 100-continue\n\nabc"
    wire, _ = send(gateway, head, "/echo")
    with wire:
        wire.until(b"\r\n\r\n")
        assert wire.response()[2].endswith(b"abc")


def test_a_server_may_close_a_connection_and_lives_on(raw: ServerHandle) -> None:
    before = raw.request("GET", "/echo").headers["x-pid"]
    assert raw.request("GET", "/shut").status_code == 503
    assert raw.request("GET", "/echo").headers["x-pid"] == before


def test_a_caller_who_goes_away_frees_the_slot(raw: ServerHandle, eventually: Eventually) -> None:
    with contextlib.suppress(httpx.HTTPError, Exception):
        raw.request("GET", "/wait", timeout=0.5)
    assert eventually(lambda: "gone" in raw.request("GET", "/gone").text)
    assert eventually(lambda: not any(r["in_flight"] for r in raw.runners()))


CANCELS = """
import json, os, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
told, free = [], threading.Event()
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        if self.path == "/job": free.wait(30)
        else: told.append(self.path)
        if "cancel" in self.path: free.set()
        self.answer(told)
    def do_GET(self):
        paths = {"/job": {"post": {}}, "/job/cancel": {"post": {}}}
        self.answer({"openapi": "3.1.0", "paths": paths} if "openapi" in self.path else told)
    def answer(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""


def test_a_caller_who_goes_away_calls_the_cancel_route_that_the_server_has(
    shell: Any, tmp_path: Path, eventually: Eventually
) -> None:
    (tmp_path / "cancels.py").write_text(CANCELS)
    shell.run(cell("cancels", f"{sys.executable} {tmp_path}/cancels.py"))
    server = shell["cancels"]
    for path in ("/other", "/job"):
        with contextlib.suppress(GatewayUnavailableError):  # no answer came in time
            server.request("POST", path, timeout=0.5)
    wanted = ["/other", "/job/cancel"]
    eventually(lambda: server.request("GET", "/told").json() == wanted)


# --- how it starts and ends ----------------------------------------------------------------------
def test_several_runners_live_side_by_side(shell: Any, eventually: Eventually) -> None:
    shell.run(cell("several", f"exec {RAW} ${{PORT}}", min_concurrency=2))
    handle = shell["several"]
    eventually(lambda: [r["state"] for r in handle.runners()] == ["IDLE", "IDLE"])


def test_a_function_starts_a_server_on_the_port_it_is_given(shell: Any) -> None:
    shell.run(
        "%%fal_function exposed_port=8000 wait=true\n"
        "def site(port):\n"
        "    from http.server import HTTPServer, SimpleHTTPRequestHandler\n"
        "    print('here')\n"
        "    HTTPServer(('127.0.0.1', port), SimpleHTTPRequestHandler).serve_forever()\n"
    )
    assert shell["site"].request("GET", "/").status_code == 200
    assert any(line["message"] == "here" for line in shell["site"].logs())


def test_a_python_cell_of_a_server_is_a_function(shell: Any) -> None:
    shell.run(
        cell(
            "page",
            f"import os, subprocess\ndef page():\n    subprocess.run(['sh', '-c', '{RAW} $PORT'])",
            lang="python",
        )
    )
    assert shell["page"].request("GET", "/echo").status_code == 200
    assert shell["page"].name == "page"


def test_the_name_of_a_python_server_is_bound_whatever_its_function_is_called(shell: Any) -> None:
    body = f"import os, subprocess\ndef go():\n    subprocess.run(['sh', '-c', '{RAW} $PORT'])"
    shell.run(cell("py-server", body, lang="python"))
    assert shell["py_server"].request("GET", "/echo").status_code == 200
    assert shell["go"] is shell["py_server"]


def test_a_decorated_function_that_starts_a_server_has_a_servers_handle(shell: Any) -> None:
    shell.run(
        "import fal_notebook as fal, os, subprocess\n"
        "@fal.function(exposed_port=8000)\n"
        f"def lazily():\n    subprocess.run(['sh', '-c', '{RAW} $PORT'])"
    )
    assert shell["lazily"].request("GET", "/echo").status_code == 200
    with pytest.raises(Exception, match="send it requests with"):
        shell["lazily"]()


def test_a_fixed_port_gets_one_runner_and_the_output_says_why(
    shell: Any, capsys: pytest.CaptureFixture[str], unused_port: int
) -> None:
    shell.run(cell("fixed", f"{RAW} {unused_port}", exposed_port=unused_port, max_concurrency=3))
    handle = shell["fixed"]
    first = handle.request("GET", "/echo").headers["x-pid"]
    assert "one runner at a time" in capsys.readouterr().out
    assert handle.status()["options"]["max_concurrency"] == 1
    shell.run(cell("fixed", f"{RAW} {unused_port} # new", exposed_port=unused_port))
    assert shell["fixed"].request("GET", "/echo").headers["x-pid"] != first


def test_a_failed_deploy_leaves_the_server_with_a_fixed_port(shell: Any, unused_port: int) -> None:
    shell.run(cell("stays", f"{RAW} {unused_port}", exposed_port=unused_port))
    with pytest.raises((DeployError, UsageError), match="exit status 7"):
        shell.run(cell("stays", "exit 7", exposed_port=unused_port))
    with control_of(shell) as client:
        assert client.get("/run/tester/stays/echo").status_code == 200


def control_of(shell: Any) -> httpx.Client:
    from fal_notebook import discovery, settings

    found = discovery.find(settings.state_folder())
    assert found is not None
    return control(found)


@pytest.fixture
def unused_port() -> int:
    from fal_notebook.runner.user_server import free_port

    return free_port()


def failure(shell: Any, source: str) -> str:
    with pytest.raises((DeployError, UsageError)) as caught:
        shell.run(source)
    return str(caught.value)


def test_a_function_that_raises_says_what(shell: Any) -> None:
    source = (
        "%%fal_function exposed_port=8000 wait=true\ndef raises(): raise ValueError('no model')"
    )
    said = failure(shell, source).splitlines()[0]
    assert said.endswith("with exit status 1 before it opened its port: ValueError: no model")


def test_a_server_that_ends_says_how_with_its_last_lines(
    shell: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    command = "for i in $(seq 1 80); do echo line $i; done; exit 3"
    said = failure(shell, cell("ends", command))
    assert "the server ended with exit status 3 before it opened its port" in said
    shown = capsys.readouterr().out
    assert "| line 31" in shown
    assert "| line 80" in shown
    assert "| line 30\n" not in shown


def test_a_server_that_never_opens_its_port_is_ended(
    shell: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    said = failure(shell, cell("silent", "echo waiting; sleep 600", startup_timeout=4))
    assert "startup_timeout=4 s: the server has not opened a port yet" in said
    assert "| waiting" in capsys.readouterr().out


def test_a_server_on_another_port_or_address_is_named(shell: Any, unused_port: int) -> None:
    command = f"{RAW} {unused_port} 127.0.0.9"
    said = failure(shell, cell("elsewhere", command, startup_timeout=2))
    assert f"listens on 127.0.0.9:{unused_port} and not on" in said


def test_who_holds_a_fixed_port_is_named(shell: Any, unused_port: int) -> None:
    shell.run(cell("holder", f"{RAW} {unused_port}", exposed_port=unused_port))
    said = failure(shell, cell("second", f"{RAW} {unused_port}", exposed_port=unused_port))
    assert f"port {unused_port} is taken by python" in said


def test_a_server_that_dies_ends_its_runner_and_another_serves(
    shell: Any, eventually: Eventually
) -> None:
    shell.run(cell("mortal", f"{RAW} {{port}}"))
    handle = shell["mortal"]
    handle.request("GET", "/echo")
    assert handle.request("GET", "/die").status_code == 503
    # A system may close the listening socket last: then one more connects to who is dead.
    eventually(lambda: handle.request("GET", "/echo").status_code == 200)


def test_a_server_that_dies_soon_is_backed_off_from(shell: Any, eventually: Eventually) -> None:
    shell.run(cell("dies", f"{RAW} $PORT & sleep 1; kill $!; exit 5", min_concurrency=1))
    status = eventually(lambda: (s := shell["dies"].status())["last_error"] and s)
    assert "the server ended with exit status 5" in status["last_error"]


def test_a_drain_lets_the_server_finish_what_it_works_on(
    shell: Any, eventually: Eventually
) -> None:
    shell.run(cell("drains", f"{RAW} {{port}}"))
    handle, answers = shell["drains"], []
    asking = threading.Thread(target=lambda: answers.append(handle.request("GET", "/slow").text))
    asking.start()
    eventually(lambda: any(r["in_flight"] for r in handle.runners()))
    handle.delete()
    asking.join(10)
    assert answers == ["slow"]


# --- what it is ----------------------------------------------------------------------------------
def test_the_schema_is_read_from_the_server_once(shell: Any) -> None:
    schema = json.dumps({"openapi": "3.1.0", "info": {"title": "mine"}})
    serve = f"{sys.executable} -m http.server $PORT"
    shell.run(cell("told", f"echo '{schema}' > openapi.json; {serve}"))
    assert shell["told"].openapi()["info"] == {"title": "mine"}


@pytest.mark.parametrize(
    "more",
    ["[" * 900 + "]" * 900, "[" * 200_000, r'"\ud800"', "NaN"],
    ids=["deep", "deeper than Python reads", "no text", "no JSON"],
)
def test_a_schema_that_cannot_be_told_on_is_none(
    shell: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: str
) -> None:
    (tmp_path / "openapi.json").write_text(f'{{"openapi": "3.1.0", "x": {more}}}')
    shell.run(cell("odd", f"cd {tmp_path}; {sys.executable} -m http.server $PORT"))
    assert "no OpenAPI" in capsys.readouterr().out
    assert shell["odd"].openapi() == {}


def test_metadata_wins_over_what_the_server_says(shell: Any) -> None:
    shell.run("meta = {'openapi': {'openapi': '3.1.0', 'info': {'title': 'given'}}}")
    shell.run(cell("given", f"{RAW} $PORT", metadata="meta"))
    assert shell["given"].openapi()["info"] == {"title": "given"}


def test_without_a_schema_the_app_works_and_says_what_is_missing(
    shell: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.run(cell("untold", f"{RAW} $PORT"))
    assert "no OpenAPI" in capsys.readouterr().out
    assert shell["untold"].request("GET", "/openapi.json").text.startswith("GET /openapi.json ")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("%%fal_server x lang=sh\ntrue", "exposed_port is missing"),
        ("%%fal_server exposed_port=1\ntrue", "the app has no name"),
        ("%%fal_server x exposed_port=1 lang=perl\ntrue", "lang=perl is not allowed"),
        ("%%fal_server x exposed_port=1 target=local\nFROM a", "target=local exclude each other"),
        ("%%fal_server x exposed_port=1\n\n", "the cell is empty"),
        ("%%fal_server x exposed_port=0\ntrue", "exposed_port=0 is not allowed"),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_sentence(
    shell: Any, source: str, said: str
) -> None:
    assert said in failure(shell, source)


def test_a_server_is_no_function(raw: ServerHandle) -> None:
    with pytest.raises(Exception, match="send it requests with"):
        raw(1)


def test_a_key_in_the_command_is_refused(shell: Any) -> None:
    key = "sk-" + "proj-" + "a1B2c3D4" * 6
    said = failure(shell, cell("keyed", f"serve --key {key}"))
    assert "`keyed` contains what looks like an OpenAI key" in said


# --- WebSockets ----------------------------------------------------------------------------------
SOCKETS = f"{sys.executable} {Path(__file__).with_name('socket_server.py')}"


@pytest.fixture(scope="module")
def sockets(gateway: GatewayInfo) -> Iterator[ServerHandle]:
    """A server of the library `websockets`."""
    from conftest import Shell

    shell = Shell()
    shell.run(cell("sockets", f"{SOCKETS} {{port}}", max_multiplexing=2000, request_timeout=600))
    handle: ServerHandle = shell["sockets"]
    yield handle
    handle.delete()


def open_socket(gateway: GatewayInfo, path: str, **options: Any) -> ClientConnection:
    url = gateway.url.replace("http", "ws") + "/run/tester" + path
    headers = {"authorization": f"Bearer {gateway.token}"}
    return connect(url, additional_headers=headers, proxy=None, **options)


def test_a_websocket_goes_both_ways(gateway: GatewayInfo, sockets: ServerHandle) -> None:
    with open_socket(gateway, "/sockets/a%20b?c=d", subprotocols=["other", "chat"]) as socket:
        assert socket.subprotocol == "chat"
        assert "permessage-deflate" in socket.response.headers["sec-websocket-extensions"]
        assert socket.recv() == "/a%20b?c=d"
        for sent in ("text", b"bytes", "", "x" * 300_000):
            socket.send(sent)
            assert socket.recv() == sent
        assert socket.ping().wait(5)


def test_close_codes_pass_in_both_directions(
    gateway: GatewayInfo, sockets: ServerHandle, eventually: Eventually
) -> None:
    with open_socket(gateway, "/sockets/") as socket:
        socket.recv()
        socket.send("close 4321 because")
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv()
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4321, "because")
    with open_socket(gateway, "/sockets/") as socket:
        socket.recv()
        socket.close(4999, "mine")
    with open_socket(gateway, "/sockets/") as socket:
        socket.recv()
        socket.send("last close")
        assert socket.recv() == "4999 mine"


def test_a_slow_reader_holds_its_server_back(gateway: GatewayInfo, sockets: ServerHandle) -> None:
    with open_socket(gateway, "/sockets/", max_queue=1, compression=None) as socket:
        socket.recv()
        before = gateway_memory(gateway)
        socket.send("flood 200")  # MB; nobody reads for now
        time.sleep(1)
        assert gateway_memory(gateway) - before < 32 * 2**20
        assert sum(len(socket.recv()) for _ in range(200)) == 200 * 2**20


def gateway_memory(gateway: GatewayInfo) -> int:
    return int(psutil.Process(gateway.pid).memory_info().rss)


def test_a_thousand_idle_websockets_cost_little(
    gateway: GatewayInfo, sockets: ServerHandle, eventually: Eventually
) -> None:
    async def many() -> None:
        url = gateway.url.replace("http", "ws") + "/run/tester/sockets/"
        headers = {"authorization": f"Bearer {gateway.token}"}
        before = gateway_memory(gateway)
        found = []
        for _ in range(20):
            opening = [
                async_connect(url, additional_headers=headers, proxy=None, open_timeout=60)
                for _ in range(50)
            ]
            found += await asyncio.gather(*opening)
        assert sockets.runners()[0]["in_flight"] == 1000
        assert gateway_memory(gateway) - before < 60 * 2**20
        await asyncio.gather(*(socket.close() for socket in found))

    asyncio.run(many())
    eventually(lambda: sockets.runners()[0]["in_flight"] == 0)


def test_a_socket_whose_caller_is_gone_frees_its_slot(
    gateway: GatewayInfo, sockets: ServerHandle, eventually: Eventually
) -> None:
    with open_socket(gateway, "/sockets/") as socket:
        socket.recv()
        assert sockets.runners()[0]["in_flight"] == 1
        socket.socket.shutdown(SHUT_RDWR)
        eventually(lambda: sockets.runners()[0]["in_flight"] == 0)


def test_a_server_that_ends_closes_its_sockets(shell: Any, gateway: GatewayInfo) -> None:
    shell.run(cell("ending", f"{SOCKETS} {{port}}"))
    with open_socket(gateway, "/ending/") as socket:
        socket.recv()
        socket.send("die")
        with pytest.raises(ConnectionClosed):
            socket.recv()


def test_a_server_may_refuse_a_websocket(gateway: GatewayInfo, sockets: ServerHandle) -> None:
    with pytest.raises(InvalidStatus) as refused:
        open_socket(gateway, "/sockets/refused")
    assert refused.value.response.status_code == 403
    assert refused.value.response.body == b"not here\n"


KEY = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
VERSION = "Sec-WebSocket-Version: 13"
ASKED = "Host: GATEWAY\nAUTH\nConnection: Upgrade\nUpgrade: websocket\n"


def test_what_the_server_gets_of_an_upgrade(gateway: GatewayInfo, raw: ServerHandle) -> None:
    lines = f"X-B: 1\n{KEY}\n{VERSION}\nSec-WebSocket-Protocol: chat"
    wire, host = send(gateway, f"GET PATH HTTP/1.1\n{ASKED}{lines}\n\n", "/websocket/%41?q=1")
    with wire:
        assert wire.head()[0] == 101
        frame = wire.until(b"\r\n\r\n")[4:].decode()
        wire.send(b"any bytes at all, no frames!")
        assert wire.until(b"!") == b"any bytes at all, no frames!"
    first, *got = frame.lower().split("\r\n")
    assert first == "get /websocket/%41?q=1 http/1.1"
    sent = [f"host: {host}", *(line.lower() for line in lines.split("\n"))]
    assert got[: len(sent)] == sent
    assert "secret" not in frame
    assert {"connection: upgrade", "upgrade: websocket"} <= set(got)


@pytest.mark.parametrize(
    ("asked", "status", "said"),
    [
        (f"GET PATH HTTP/1.1\n{ASKED}{VERSION}\n\n", 400, "Sec-WebSocket-Key must hold 16 bytes"),
        (f"GET PATH HTTP/1.1\n{ASKED}{KEY}\n\n", 400, "Sec-WebSocket-Version: 13"),
        (f"POST PATH HTTP/1.1\n{ASKED}{KEY}\n{VERSION}\n\n", 400, "asked for with GET"),
        (f"GET PATH HTTP/1.0\n{ASKED}{KEY}\n{VERSION}\n\n", 400, "asked for with HTTP/1.1"),
        (f"GET PATH HTTP/1.1\n{ASKED}{KEY}\n{KEY}\n{VERSION}\n\n", 400, "-key occurs twice"),
        (f"GET PATH HTTP/1.1\n{ASKED}{KEY}\n{VERSION}\n{VERSION}\n\n", 400, "-version occurs"),
        (f"GET PATHx HTTP/1.1\n{ASKED}{KEY}\n{VERSION}\n\n", 404, "no such app"),
        (
            f"GET PATH HTTP/1.1\n{ASKED}{KEY}\n{VERSION}\nOrigin: http://evil.invalid\n\n",
            403,
            "other web pages",
        ),
        (
            f"GET PATH HTTP/1.1\n{ASKED.replace('AUTH', 'X-A: b')}{KEY}\n{VERSION}\n\n",
            401,
            "needs a key",
        ),
        (f"GET /api/x HTTP/1.1\n{ASKED}{KEY}\n{VERSION}\n\n", 404, "only apps serve WebSockets"),
        (f"GET / HTTP/1.1\n{ASKED}{KEY}\n{VERSION}\n\n", 404, "only apps serve WebSockets"),
        (f"GET /queue/a/b HTTP/1.1\n{ASKED}{KEY}\n{VERSION}\n\n", 404, "only apps serve"),
        (
            f"GET PATH HTTP/1.1\n{ASKED.replace('Connection: Upgrade', 'X-A: b')}{KEY}\n\n",
            400,
            "needs the header Connection: Upgrade",
        ),
    ],
)
def test_an_upgrade_that_cannot_be_is_refused(
    gateway: GatewayInfo, raw: ServerHandle, asked: str, status: int, said: str
) -> None:
    wire, _ = send(gateway, asked, "")
    with wire:
        got, _, body = wire.response()
    assert got == status
    assert said in body.decode()


def test_an_offered_protocol_does_not_reach_the_server(
    gateway: GatewayInfo, raw: ServerHandle
) -> None:
    offered = "Connection: Upgrade, HTTP2-Settings\nUpgrade: h2c\nHTTP2-Settings: AAMAAABk\n"
    lines = f"Host: GATEWAY\nAUTH\n{offered}Content-Length: 4\n\nbody"
    wire, _ = send(gateway, f"POST PATH HTTP/1.1\n{lines}", "/echo/a")
    with wire:
        status, _, frame = wire.response()
    assert status == 200
    assert frame.endswith(b"\r\n\r\nbody")
    assert b"upgrade" not in frame.lower()
    assert b"settings" not in frame.lower()


# --- over what happens meanwhile -----------------------------------------------------------------
def test_a_queued_request_reaches_the_server(
    gateway: GatewayInfo, raw: ServerHandle, eventually: Eventually
) -> None:
    with control(gateway) as client:
        told = client.post("/queue/tester/raw/echo/a?b=c", content=b"body").json()
        eventually(lambda: client.get(told["status_url"]).json()["status"] == "COMPLETED")
        text = client.get(told["response_url"]).text
    assert text.startswith("POST /echo/a?b=c HTTP/1.1\r\n")
    assert text.endswith("\r\n\r\nbody")
    assert "secret" not in text


def test_a_websocket_ends_with_request_timeout_and_its_server_lives(
    shell: Any, gateway: GatewayInfo, eventually: Eventually
) -> None:
    shell.run(cell("brief", f"{SOCKETS} {{port}}", request_timeout=1))
    runner = shell["brief"].runners()[0]["id"]
    with open_socket(gateway, "/brief/") as socket:
        socket.recv()
        with pytest.raises(ConnectionClosed):
            socket.recv(10)
    left = eventually(lambda: [r for r in shell["brief"].runners() if not r["in_flight"]])
    assert [r["id"] for r in left] == [runner]


def test_nothing_of_a_server_outlives_its_runner(shell: Any, eventually: Eventually) -> None:
    command = f"IGNORE_SIGTERM=1 setsid {RAW} {{port}} & wait"
    shell.run(cell("stubborn", command, termination_grace_period_seconds=1))
    pid = int(shell["stubborn"].request("GET", "/echo").headers["x-pid"])
    shell["stubborn"].delete()
    eventually(lambda: not psutil.pid_exists(pid))


def test_the_next_gateway_adopts_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    folder = tmp_path / "private-state"
    monkeypatch.setenv("FAL_NOTEBOOK_STATE", str(folder))
    command = ServerCommand("adopted", f"{RAW} $PORT")
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: _stop(folder))
        with control(discovery.ensure(folder)) as client:
            _deploy(client, command)
            before = eventually(lambda: _pid(client))
            os.kill(discovery.ensure(folder).pid, signal.SIGKILL)
        discovery.wait_until_gone(folder)
        with control(discovery.ensure(folder)) as client:
            assert _pid(client) == before


def _deploy(client: httpx.Client, command: ServerCommand) -> None:
    payload = command.capture({}, (), {})
    digest = hashlib.sha256(payload.content).hexdigest()
    client.put(f"/api/blobs/{digest}", content=payload.content).raise_for_status()
    request = {
        "name": command.name,
        "digest": payload.digest,
        "payload": digest,
        "manifest": payload.manifest,
        "options": {"exposed_port": 8000, "keep_alive": 60},
        "notebook": "test",
    }
    client.post("/api/apps/tester", json=request).raise_for_status()


def _pid(client: httpx.Client) -> str:
    return client.get("/run/tester/adopted/echo").headers.get("x-pid", "")


def _stop(folder: Path) -> None:
    with control(discovery.ensure(folder)) as client:
        client.post("/api/gateway/stop")
    discovery.wait_until_gone(folder)
