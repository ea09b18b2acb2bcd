"""One request on its way: what callers cannot say to a runner, runners that die, slow bodies."""

from __future__ import annotations

import asyncio
import contextlib
import json
import select
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from inside import fleet_of
from serving import control, deployed, run_url

from fal_notebook.discovery import GatewayInfo
from fal_notebook.gateway import direct, exchange, limits
from fal_notebook.gateway.fleet import Fleet, Runner
from fal_notebook.gateway.upstream import Pool

ACT = """
import os, time
def exchanged(do: str = "echo", n: float = 0):
    if do == "exit":
        os._exit(3)
    if do == "sleep":
        time.sleep(n)
    return os.getpid() if do == "pid" else n
"""


@pytest.fixture(scope="module")
def act(gateway: GatewayInfo) -> Iterator[str]:
    """A public app that does what a request asks for, on one runner; its URL."""
    options = {"max_concurrency": 1, "max_multiplexing": 8, "keep_alive": 60, "min_concurrency": 1}
    with deployed(ACT, serve=True, auth="public", **options) as handle:
        yield run_url(gateway, handle)


def in_flight(gateway: GatewayInfo) -> int:
    with control(gateway) as client:
        return int(client.get("/api/apps/tester/exchanged").json()["in_flight"])


@pytest.mark.parametrize("wanted", ["states", "end", "cancel", "link"])
def test_callers_cannot_speak_the_gateways_own_language(
    gateway: GatewayInfo, act: str, wanted: str
) -> None:
    first = httpx.post(act, json={"do": "pid"}).json()
    for name in ("x-fal-link", "X-FAL-LINK", "x-fal-runner-secret"):
        answer = httpx.post(f"{act}/_fal/{wanted}", headers={name: wanted}, timeout=5)
        assert answer.json() == {"detail": f"Path /_fal/{wanted} not found"}
        assert httpx.post(act, json={"n": 2}, headers={name: wanted}, timeout=5).json() == 2
    assert in_flight(gateway) == 0
    assert httpx.post(act, json={"do": "pid"}).json() == first


# --- runners that die -------------------------------------------------------------------------
def test_no_request_is_given_to_a_runner_that_has_crashed(act: str) -> None:
    for _ in range(15):
        assert httpx.post(act, json={"do": "exit"}, timeout=20).status_code == 503
        assert httpx.post(act, json={"n": 1}, timeout=20).json() == 1


class Resets(asyncio.Protocol):
    """A runner that ends when a request has come, before it has read any of it."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.pause_reading()
        self._end_unread(transport)

    def _end_unread(self, transport: asyncio.Transport) -> None:
        if select.select([transport.get_extra_info("socket")], [], [], 0)[0]:
            transport.abort()
        else:
            asyncio.get_running_loop().call_soon(self._end_unread, transport)


class Answers(asyncio.Protocol):
    """A runner that works."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")


class EndsWithoutAnswer(Answers):
    """A runner that dies at work."""

    def data_received(self, data: bytes) -> None:
        self._transport.close()


@contextlib.asynccontextmanager
async def serving(folder: Path, *runners: type[asyncio.Protocol]) -> AsyncIterator[Fleet]:
    """Give a fleet whose ready runners are servers on Unix sockets, taken in this order."""
    fleet = fleet_of(len(runners))
    async with contextlib.AsyncExitStack() as stack:
        for runner, kind in zip(fleet.runners.values(), runners, strict=True):
            path = str(folder / runner.row.id)
            server = await asyncio.get_running_loop().create_unix_server(kind, path)
            await stack.enter_async_context(server)
            runner.pool = Pool(f"unix:{path}")
            stack.callback(runner.pool.close)
        yield fleet


class Caller:
    """Sends one POST through an exchange; holds what came back and which runners were ended."""

    def __init__(self, *body: bytes) -> None:
        self._body = list(body)
        self.status = 0
        self.content = b""
        self.ended: list[str] = []
        self.how = ""

    async def ask(self, fleet: Fleet) -> None:
        scope = {"method": "POST", "query_string": b"", "http_version": "1.1", "headers": []}
        request = exchange.Request(scope, {}, b"/", "r", None)
        forward = exchange.Exchange(fleet, request, self._kill, 10**6)
        await direct.DirectRequest(fleet, request, forward).run(self._receive, self._send)

    def _kill(self, runner: Runner, cause: str) -> None:
        runner.row.state = "TERMINATING"
        self.ended.append(runner.row.id)
        asyncio.get_running_loop().call_later(0.05, runner.how.set_result, self.how)

    async def _receive(self) -> Any:
        if not self._body:
            return await asyncio.Event().wait()
        chunk = self._body.pop(0)
        return {"type": "http.request", "body": chunk, "more_body": bool(self._body)}

    async def _send(self, message: Any) -> None:
        self.status = message.get("status", self.status)
        self.content += message.get("body", b"")


async def test_a_body_that_does_not_come_is_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BODY_STALL", 0.05)
    caller = Caller()
    await caller.ask(fleet_of(0))
    assert caller.status == 408


@pytest.mark.linux  # elsewhere an unread request ends like one that was read
async def test_a_request_that_a_runner_reset_unread_is_given_to_another(tmp_path: Path) -> None:
    async with serving(tmp_path, Resets, Resets, Answers) as fleet:
        caller = Caller(b"{}")
        await caller.ask(fleet)
        assert (caller.status, caller.content) == (200, b"ok")
        assert caller.ended == ["r0", "r1"]
        assert [runner.in_flight for runner in fleet.runners.values()] == [0, 0, 0]


@pytest.mark.linux  # elsewhere an unread request ends like one that was read
async def test_a_request_is_not_tried_without_end(tmp_path: Path) -> None:
    async with serving(tmp_path, *[Resets] * direct.ATTEMPTS, Answers) as fleet:
        caller = Caller(b"{}")
        await caller.ask(fleet)
        assert caller.status == 503
        assert b"runner_connection_refused" in caller.content
        assert caller.ended == [f"r{number}" for number in range(direct.ATTEMPTS)]


async def test_a_body_that_was_streamed_away_is_not_sent_again(tmp_path: Path) -> None:
    async with serving(tmp_path, Resets, Answers) as fleet:
        caller = Caller(b" " * exchange.READ_AHEAD, b"{}")
        await caller.ask(fleet)
        assert caller.status == 503
        assert caller.ended == ["r0"]


async def test_a_runner_that_read_the_request_and_ended_may_have_worked(tmp_path: Path) -> None:
    async with serving(tmp_path, EndsWithoutAnswer, Answers) as fleet:
        caller = Caller(b"{}")
        await caller.ask(fleet)
        assert caller.status == 503
        assert b"runner_disconnected" in caller.content


@pytest.mark.parametrize("how", ["", "out of memory: it may have 1 MB"])
async def test_how_a_lost_runner_ended_is_told_when_it_is_known_soon(
    tmp_path: Path, how: str
) -> None:
    async with serving(tmp_path, EndsWithoutAnswer) as fleet:
        errors = list[str]()
        fleet.on_error = lambda failure: errors.append(failure.message)
        caller = Caller(b"{}")
        caller.how = how
        await caller.ask(fleet)
        told = "the runner closed the connection without an answer" + (f" ({how})" if how else "")
        assert json.loads(caller.content)["detail"] == told
        assert errors == [told]


async def test_how_a_lost_runner_ended_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "LAST_WORD", 0.01)
    async with serving(tmp_path, EndsWithoutAnswer) as fleet:
        caller = Caller(b"{}")
        await caller.ask(fleet)
        assert caller.status == 503
        assert not next(iter(fleet.runners.values())).how.done()


async def test_a_server_that_goes_on_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "LAST_WORD", 100)
    async with serving(tmp_path, EndsWithoutAnswer) as fleet:
        (runner,) = fleet.runners.values()
        runner.direct = runner.pool
        caller = Caller(b"{}")
        await asyncio.wait_for(caller.ask(fleet), 5)
        assert (caller.status, caller.ended) == (503, [])


# --- what a runner gets from the gateway's process ---------------------------------------------
@pytest.mark.linux  # descriptors are listed in /proc
def test_a_runner_inherits_no_descriptor_of_the_gateway(gateway: GatewayInfo) -> None:
    source = (
        "import os\ndef held() -> list:\n    folder = '/proc/self/fd/'\n"
        "    return [os.path.realpath(folder + name) for name in os.listdir(folder)]"
    )
    with deployed(source, serve=True, auth="public") as handle:
        found = httpx.post(run_url(gateway, handle), json={}, timeout=20).json()
    assert not [path for path in found if path.endswith(("gateway.log", ".db", ".lock"))]
    files = [path for path in found if not path.startswith("/proc/")]
    # Its input (libuv holds another), its log and the program that it runs.
    assert {path.rpartition(".")[2] for path in files} <= {"/dev/null", "log", "zip"}
