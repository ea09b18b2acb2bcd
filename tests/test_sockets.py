"""WebSocket endpoints of an `App`: what a handler gets, how it ends, whose slot it holds."""

from __future__ import annotations

import contextlib
import json
import ssl
from collections.abc import Callable, Iterator
from socket import SHUT_RDWR
from typing import Any

import pytest
from runner_bench import define, notebook
from serving import Wire, control
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from fal_notebook import deploying
from fal_notebook.discovery import GatewayInfo
from fal_notebook.exceptions import NotFoundError

Eventually = Callable[..., Any]

TALK = """
from __future__ import annotations
import asyncio, time
import fal_notebook as fal
from fastapi import Depends, HTTPException, WebSocket, WebSocketDisconnect, WebSocketException
from fal_notebook.exceptions import AppException

class Talk(fal.App, max_multiplexing=8, max_concurrency=1, request_timeout=600):
    def setup(self):
        self.seen = []
        self.working = 0

    @fal.endpoint("/seen")
    def all_seen(self) -> list:
        return self.seen

    @fal.endpoint("/talk", is_websocket=True)
    async def talk(self, socket: WebSocket):
        await socket.accept(subprotocol="chat" if "chat" in socket["subprotocols"] else None)
        print("talking", socket.url.path)
        assert self.current_request.request_id
        async for text in socket.iter_text():
            word, _, rest = text.partition(" ")
            if word == "close":
                await socket.close(int(rest), "because")
                return
            if word == "fail":
                raise ValueError(rest)
            if word == "refuse":
                raise AppException(rest, 400)
            if word == "except":
                raise WebSocketException(4010, rest)
            if word == "return":
                return
            if word == "flood":
                for _ in range(int(rest)):
                    await socket.send_bytes(bytes(2**20))
                continue
            await socket.send_text(text)
        self.seen.append("left")

    @fal.endpoint("/hears", is_websocket=True)
    async def hears(self, socket: WebSocket):
        await socket.accept()
        await socket.send_text("hello")
        try:
            await socket.receive_text()
        except WebSocketDisconnect as left:
            await asyncio.sleep(1)  # it is given time to put things away
            self.seen.append(left.code)

    @fal.endpoint("/busy", is_websocket=True)
    async def busy(self, socket: WebSocket):
        await socket.accept()
        await socket.send_text("hello")
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            self.seen.append("cancelled")
            raise

    @fal.endpoint("/sends", is_websocket=True)
    async def sends(self, socket: WebSocket):
        await socket.accept()
        try:
            while True:
                await socket.send_text("x" * 100)
        finally:
            self.seen.append("ended")

    @fal.endpoint("/thread", is_websocket=True)
    async def thread(self, socket: WebSocket):
        await socket.accept()
        await socket.send_text("hello")
        await asyncio.to_thread(time.sleep, 600)

    @fal.endpoint("/refused", is_websocket=True)
    async def refused(self, socket: WebSocket):
        raise HTTPException(401, "not you")

    @fal.endpoint("/broken", is_websocket=True)
    async def broken(self, socket: WebSocket):
        raise KeyError("early")

    @fal.endpoint("/rooms/{room}", is_websocket=True)
    async def rooms(self, socket: WebSocket, room: int, name: str = "nobody"):
        await socket.accept()
        await socket.send_json([room, name])
"""


@contextlib.contextmanager
def app_of(source: str, entry: str, **options: Any) -> Iterator[Any]:
    """Deploy a class of source text as a notebook would; delete it at the end."""
    with notebook():
        handle = deploying.deploy(define(source)[entry], wait=True, **options)
    try:
        yield handle
    finally:
        with contextlib.suppress(NotFoundError):
            handle.delete()


@pytest.fixture(scope="module")
def talk(gateway: GatewayInfo) -> Iterator[Any]:
    with app_of(TALK, "Talk") as handle:
        yield handle


def open_socket(gateway: GatewayInfo, path: str, **options: Any) -> ClientConnection:
    url = gateway.url.replace("http", "ws") + "/run/tester" + path
    headers = {"authorization": f"Bearer {gateway.token}"}
    return connect(url, additional_headers=headers, proxy=None, **options)


def closed(socket: ClientConnection) -> tuple[int, str]:
    """Return code and reason with which the other side closes."""
    with pytest.raises(ConnectionClosed) as caught:
        socket.recv(20)
    assert caught.value.rcvd is not None
    return caught.value.rcvd.code, caught.value.rcvd.reason


def in_flight(handle: Any) -> int:
    return sum(runner["in_flight"] for runner in handle.runners())


def test_a_handler_talks_and_holds_one_slot(
    gateway: GatewayInfo, talk: Any, eventually: Eventually
) -> None:
    with open_socket(gateway, "/talk/talk?a=b", subprotocols=["chat"]) as socket:
        assert socket.subprotocol == "chat"
        for sent in ("text", "x" * 300_000, "ä"):
            socket.send(sent)
            assert socket.recv() == sent
        assert in_flight(talk) == 1
        request = socket.response.headers["x-fal-request-id"]
    eventually(lambda: in_flight(talk) == 0)
    (line,) = talk.logs(request=request)
    assert line["message"] == "talking /talk"


@pytest.mark.parametrize(
    ("said", "code", "reason"),
    [
        ("close 4321", 4321, "because"),
        ("return", 1000, ""),
        ("fail now", 1011, "Internal Server Error"),
        ("refuse this", 1011, "this"),
        ("except that", 4010, "that"),
    ],
)
def test_how_a_handler_ends_is_how_its_socket_is_closed(
    gateway: GatewayInfo, talk: Any, said: str, code: int, reason: str
) -> None:
    with open_socket(gateway, "/talk/talk") as socket:
        socket.send(said)
        assert closed(socket) == (code, reason)


def test_what_a_handler_raises_is_grouped(
    gateway: GatewayInfo, talk: Any, eventually: Eventually
) -> None:
    with open_socket(gateway, "/talk/talk") as socket:
        socket.send("fail grouped")
        closed(socket)
        request = socket.response.headers["x-fal-request-id"]
    error = eventually(lambda: _error(talk, request))
    assert "ValueError: grouped" in error
    assert "fail grouped" in error


def _error(handle: Any, request: str) -> str:
    with contextlib.suppress(Exception):
        return str(handle.error(request))
    return ""


@pytest.mark.parametrize(
    ("path", "status", "detail"),
    [
        ("/refused", 401, "not you"),
        ("/broken", 500, "Internal Server Error"),
        ("/nowhere", 404, "Path /nowhere not found"),
        ("/seen", 405, "Method Not Allowed"),
    ],
)
def test_before_the_socket_is_accepted_the_answer_is_http(
    gateway: GatewayInfo, talk: Any, path: str, status: int, detail: str
) -> None:
    with pytest.raises(InvalidStatus) as refused:
        open_socket(gateway, "/talk" + path)
    assert refused.value.response.status_code == status
    assert json.loads(refused.value.response.body)["detail"] == detail


def test_a_get_of_a_socket_says_that_it_is_one(gateway: GatewayInfo, talk: Any) -> None:
    with control(gateway) as client:
        answer = client.get("/run/tester/talk/talk")
    assert answer.status_code == 426
    assert answer.json()["detail"] == "Path /talk is a WebSocket: ask for it with wss:// or ws://"


def test_more_parameters_are_fastapis(gateway: GatewayInfo, talk: Any) -> None:
    with open_socket(gateway, "/talk/rooms/7?name=me") as socket:
        assert json.loads(socket.recv()) == [7, "me"]


def test_who_waits_for_a_message_hears_that_its_caller_has_gone(
    gateway: GatewayInfo, talk: Any, eventually: Eventually
) -> None:
    with open_socket(gateway, "/talk/hears") as socket:
        socket.recv()
        socket.close(4007)
    eventually(lambda: 4007 in talk.all_seen())
    eventually(lambda: in_flight(talk) == 0)


def test_who_waits_for_anything_else_is_cancelled(
    gateway: GatewayInfo, talk: Any, eventually: Eventually
) -> None:
    with open_socket(gateway, "/talk/busy") as socket:
        socket.recv()
        socket.socket.shutdown(SHUT_RDWR)
        eventually(lambda: in_flight(talk) == 0)
    assert "cancelled" in talk.all_seen()


def test_a_thread_keeps_its_slot_until_it_has_ended(
    gateway: GatewayInfo, eventually: Eventually
) -> None:
    source = TALK.replace("asyncio.to_thread(time.sleep, 600)", "self._sleep()").replace(
        '    @fal.endpoint("/refused"',
        "    async def _sleep(self):\n"
        "        task = asyncio.ensure_future(asyncio.to_thread(time.sleep, 3))\n"
        "        while not task.done():\n"
        "            try:\n                await asyncio.shield(task)\n"
        "            except asyncio.CancelledError:\n                self.seen.append('asked')\n"
        '    @fal.endpoint("/refused"',
        1,
    )
    with app_of(source, "Talk", name="stubborn") as handle:
        with open_socket(gateway, "/stubborn/thread") as socket:
            socket.recv()
        eventually(lambda: handle.all_seen() == ["asked"])
        assert in_flight(handle) == 1
        eventually(lambda: in_flight(handle) == 0)


def test_a_slow_reader_holds_the_handler_back(gateway: GatewayInfo, talk: Any) -> None:
    with open_socket(gateway, "/talk/talk", max_queue=1, compression=None) as socket:
        socket.send("flood 100")
        assert sum(len(socket.recv()) for _ in range(100)) == 100 * 2**20


def test_a_drain_closes_sockets_within_the_grace(gateway: GatewayInfo) -> None:
    options = {"name": "ending", "termination_grace_period_seconds": 2}
    with app_of(TALK, "Talk", **options) as handle, open_socket(gateway, "/ending/talk") as socket:
        socket.send("hello")
        assert socket.recv() == "hello"
        handle.delete()
        assert closed(socket) == (1001, "the runner ends")


def test_request_timeout_closes_the_socket_and_its_runner_lives(
    gateway: GatewayInfo, eventually: Eventually
) -> None:
    with app_of(TALK, "Talk", name="brief", request_timeout=1) as handle:
        runner = handle.runners()[0]["id"]
        with open_socket(gateway, "/brief/busy") as socket:
            socket.recv()
            assert closed(socket) == (1001, "request_timeout")
        eventually(lambda: in_flight(handle) == 0)
        assert [r["id"] for r in handle.runners()] == [runner]


def test_a_caller_that_does_not_answer_holds_no_slot_beyond_request_timeout(
    gateway: GatewayInfo, eventually: Eventually
) -> None:
    with (
        app_of(TALK, "Talk", name="mute", request_timeout=1, max_multiplexing=1) as handle,
        Wire(gateway) as wire,
    ):
        wire.send(f"GET /run/tester/mute/busy HTTP/1.1\n{asked_of(gateway)}")
        wire.until(b"hello")
        eventually(lambda: in_flight(handle) == 0, timeout=3)


def test_a_caller_that_does_not_answer_a_close_frees_its_slot_soon(
    gateway: GatewayInfo, talk: Any, eventually: Eventually
) -> None:
    with Wire(gateway) as wire:
        wire.send(f"GET /run/tester/talk/rooms/7 HTTP/1.1\n{asked_of(gateway)}")
        wire.until(b"\x88\x02\x03\xe8")  # close, 1000
        assert in_flight(talk) == 1
        eventually(lambda: in_flight(talk) == 0, timeout=6)


def test_a_runner_that_does_not_let_go_is_ended(
    gateway: GatewayInfo, eventually: Eventually
) -> None:
    source = TALK.replace("await asyncio.to_thread(time.sleep, 600)", "time.sleep(600)")
    with app_of(source, "Talk", name="stuck", request_timeout=1, min_concurrency=1) as handle:
        runner = handle.runners()[0]["id"]
        with open_socket(gateway, "/stuck/thread") as socket:
            socket.recv()
            with pytest.raises(ConnectionClosed):
                socket.recv(20)
        eventually(lambda: runner not in [r["id"] for r in handle.runners()])


def asked_of(gateway: GatewayInfo) -> str:
    return (
        f"Host: GATEWAY\nAuthorization: Bearer {gateway.token}\nConnection: Upgrade\n"
        "Upgrade: websocket\nSec-WebSocket-Version: 13\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\n\n"
    )


def test_a_caller_that_half_closes_frees_its_slot(
    gateway: GatewayInfo, talk: Any, eventually: Eventually
) -> None:
    with Wire(gateway) as wire:
        wire.send(f"GET /run/tester/talk/busy HTTP/1.1\n{asked_of(gateway)}")
        assert wire.head()[0] == 101
        wire.until(b"hello")
        wire.socket.shutdown(1)
        eventually(lambda: in_flight(talk) == 0)


def _close(wire: Wire) -> None:
    wire.socket.close()


def _close_after_101(wire: Wire) -> None:
    wire.head()
    wire.socket.close()


def _shut_down(wire: Wire) -> None:
    wire.head()
    wire.socket.shutdown(SHUT_RDWR)
    wire.socket.close()


@pytest.mark.parametrize("leave", [_close, _close_after_101, _shut_down])
@pytest.mark.parametrize("path", ["sends", "busy"])
def test_a_caller_that_leaves_with_the_handshake_frees_its_slot(
    gateway: GatewayInfo, eventually: Eventually, path: str, leave: Callable[[Wire], None]
) -> None:
    with app_of(TALK, "Talk", name="left", max_multiplexing=2) as handle:
        for _ in range(4):
            wire = Wire(gateway)
            wire.send(f"GET /run/tester/left/{path} HTTP/1.1\n{asked_of(gateway)}")
            leave(wire)
            eventually(lambda: in_flight(handle) == 0, timeout=5)
        assert set(handle.all_seen()) <= {"ended", "cancelled"}
        assert handle.all_seen() or leave is _close


def test_sockets_go_over_tls(gateway: GatewayInfo, talk: Any) -> None:
    with control(gateway) as client:
        tls = client.post("/api/gateway/tls").json()
    url = f"wss://127.0.0.1:{tls['port']}/run/tester/talk/talk"
    trusting = ssl.create_default_context(cafile=tls["bundle"])
    headers = {"authorization": f"Bearer {gateway.token}"}
    with connect(url, additional_headers=headers, proxy=None, ssl=trusting) as socket:
        socket.send("x" * 300_000)
        assert socket.recv() == "x" * 300_000


def test_a_runner_that_dies_ends_its_sockets_and_another_serves(gateway: GatewayInfo) -> None:
    source = TALK.replace("raise ValueError(rest)", "__import__('os').kill(0, 9)")
    with app_of(source, "Talk", name="dying") as handle:
        with open_socket(gateway, "/dying/talk") as socket:
            socket.send("fail")
            with pytest.raises(ConnectionClosed):
                socket.recv(20)
        with open_socket(gateway, "/dying/talk") as socket:
            socket.send("again")
            assert socket.recv() == "again"
        assert len(handle.runners()) == 1


def test_the_handle_says_how_a_socket_is_reached(talk: Any) -> None:
    with pytest.raises(
        AttributeError, match=r"'busy' is a WebSocket: connect to ws://.*/talk/busy"
    ):
        talk.busy()


def test_the_document_names_sockets(gateway: GatewayInfo, talk: Any) -> None:
    document = talk.openapi()
    assert document["paths"]["/talk"]["x-fal-protocol"]["type"] == "websocket"
    assert document["x-fal-order-paths"][:2] == ["/seen", "/talk"]


WRONG = {
    "@fal.endpoint('/a', is_websocket=True)\n    def f(self, socket): pass": "must be async",
    "@fal.endpoint('/a', is_websocket=True)\n    async def f(self): pass": "no parameter for",
}


@pytest.mark.parametrize(("method", "said"), WRONG.items(), ids=WRONG.values())
def test_a_wrong_handler_is_refused_when_it_is_defined(method: str, said: str) -> None:
    source = f"import fal_notebook as fal\nclass A(fal.App):\n    {method}\n"
    with notebook(), pytest.raises(Exception, match=said):
        define(source)
