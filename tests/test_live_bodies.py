"""Bodies that come piece by piece: a server of the user's own gets each piece as it comes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import Wire

from fal_notebook.discovery import GatewayInfo
from fal_notebook.gateway import watch
from fal_notebook.server_handle import ServerHandle

Eventually = Callable[[Callable[[], Any]], Any]
RAW = f"{sys.executable} {Path(__file__).with_name('raw_server.py')}"
HEAD = "POST /run/tester/live{path} HTTP/1.1\nHost: GATEWAY\n{more}\n\n"
CHUNKED = "Transfer-Encoding: chunked"


@pytest.fixture
def live(shell: Any) -> ServerHandle:
    options = "exposed_port=8000 auth=public max_multiplexing=4 request_timeout=3 wait=true"
    shell.run(f"%%fal_server live {options}\n{RAW} {{port}}\n")
    handle: ServerHandle = shell["live"]
    return handle


def sent(gateway: GatewayInfo, path: str, more: str, body: bytes = b"") -> Wire:
    return Wire(gateway).send(HEAD.format(path=path, more=more)).send(body)


@pytest.mark.parametrize(
    ("more", "pieces"),
    [
        (CHUNKED, (b"3\r\none\r\n", b"3\r\ntwo\r\n0\r\n\r\n")),
        ("Content-Length: 6", (b"one", b"two")),
    ],
)
def test_a_piece_reaches_the_server_before_the_next_is_sent(
    gateway: GatewayInfo,
    live: ServerHandle,
    eventually: Eventually,
    more: str,
    pieces: tuple[bytes, bytes],
) -> None:
    def came() -> str:
        return live.request("GET", "/came").text

    with sent(gateway, "/live", more) as wire:
        eventually(lambda: "head" in came())
        wire.send(pieces[0])
        eventually(lambda: "one" in came())
        assert "two" not in came()
        wire.send(pieces[1])
        assert wire.response()[2].endswith(b"two" if more != CHUNKED else b"0\r\n\r\n")


def test_a_slow_body_is_bounded_by_request_timeout_alone(
    gateway: GatewayInfo, live: ServerHandle, eventually: Eventually
) -> None:
    with sent(gateway, "/live", CHUNKED, b"3\r\none\r\n") as wire:
        assert wire.response()[0] == 408
    eventually(lambda: not any(runner["in_flight"] for runner in live.runners()))
    assert live.request("GET", "/came").status_code == 200  # the server lives on


def test_an_answer_does_not_wait_for_the_rest_of_a_body(
    gateway: GatewayInfo, live: ServerHandle
) -> None:
    with sent(gateway, "/early", CHUNKED, b"3\r\none\r\n") as wire:
        status, _, body = wire.response()
    assert (status, body) == (413, b"too much")


PIPE = """
import socketserver, sys
class Pipe(socketserver.StreamRequestHandler):
    def handle(self):
        request = self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        if not request.startswith(b"POST"):
            self.wfile.write(b"HTTP/1.1 404 Not Found\\r\\nContent-Length: 0\\r\\n\\r\\n")
            return
        self.wfile.write(b"HTTP/1.1 200 OK\\r\\n\\r\\n")
        data = b""
        while not data.endswith(b"0\\r\\n\\r\\n") and (data := self.rfile.read1(65536)):
            self.wfile.write(data)
socketserver.ThreadingTCPServer(("127.0.0.1", int(sys.argv[1])), Pipe).serve_forever()
"""


@pytest.fixture
def pipe(shell: Any, tmp_path: Path) -> ServerHandle:
    """A server that answers with what comes, as it comes."""
    (tmp_path / "pipe.py").write_text(PIPE)
    options = "exposed_port=8000 auth=public max_concurrency=1 wait=true"
    shell.run(f"%%fal_server pipe {options}\n{sys.executable} {tmp_path}/pipe.py {{port}}\n")
    handle: ServerHandle = shell["pipe"]
    return handle


def test_a_body_goes_on_while_it_is_answered(gateway: GatewayInfo, pipe: ServerHandle) -> None:
    with Wire(gateway) as wire:
        wire.send(HEAD.format(path="", more=CHUNKED).replace("live", "pipe"))
        assert wire.head()[0] == 200
        for number in range(3):
            wire.send(b"4\r\nno %d\r\n" % number)
            wire.until(b"no %d" % number)
        wire.send(b"0\r\n\r\n")
        wire.until(b"0\r\n\r\n")


def test_a_large_body_goes_both_ways_at_once(gateway: GatewayInfo, pipe: ServerHandle) -> None:
    piece = b"%x\r\n%b\r\n" % (100_000, bytes(100_000))
    with Wire(gateway) as wire, ThreadPoolExecutor() as pool:
        wire.send(HEAD.format(path="", more=CHUNKED).replace("live", "pipe"))
        assert wire.head()[0] == 200
        sending = pool.submit(wire.send, piece * 300 + b"0\r\n\r\n")
        assert len(wire.until(b"\r\n0\r\n\r\n")) > 30_000_000
        sending.result()


def test_who_leaves_while_answered_leaves_the_slot(
    gateway: GatewayInfo, pipe: ServerHandle, eventually: Eventually
) -> None:
    with Wire(gateway) as wire:
        wire.send(HEAD.format(path="", more=CHUNKED).replace("live", "pipe"))
        assert wire.head()[0] == 200
        assert any(runner["in_flight"] for runner in pipe.runners())
    eventually(lambda: not any(runner["in_flight"] for runner in pipe.runners()))


def test_a_small_body_goes_in_one_piece(live: ServerHandle) -> None:
    answer = live.request("POST", "/echo", content=b"abc")
    assert "content-length: 3" in answer.text
    assert answer.text.endswith("abc")


async def test_only_a_body_that_may_stall_is_timed() -> None:
    import asyncio

    task = asyncio.current_task()
    assert task is not None
    watched = watch.Watch(task, asyncio.Event().wait, 60, lambda: None)  # type: ignore[arg-type]
    watched.expect_body(True, stall=None)
    assert watched.body_expected
    assert watched._stall is None
    watched.end()


def test_a_slow_body_for_a_function_holds_no_slot(
    gateway: GatewayInfo, shell: Any, eventually: Eventually
) -> None:
    options = "serve=true auth=public wait=true max_concurrency=1 min_concurrency=1"
    shell.run(f"%%fal_function live {options}\ndef live() -> int:\n    return 1\n")
    with sent(gateway, "", "Content-Length: 2", b"{"):
        url = f"{gateway.url}/run/tester/live"
        assert [httpx.post(url, json={}).json() for _ in range(3)] == [1, 1, 1]
