"""Bodies that come byte by byte, and callers that send on when they have their answer."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from gateway_processes import deploy, stop
from serving import Wire

from fal_notebook import discovery
from fal_notebook.discovery import GatewayInfo

QUICK = """
from fal_notebook.gateway import limits
limits.BODY_STALL, limits.LINGER = 0.6, 0.6
from fal_notebook.gateway.__main__ import main
main()
"""
START = "POST {} HTTP/1.1\nHost: GATEWAY\nContent-Type: application/json\n"
LENGTH = "Content-Length: 100000\n\n"


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayInfo]:
    """A gateway that waits for bodies, and for refused callers, for less than a second."""
    state = tmp_path_factory.mktemp("quick")
    state.chmod(0o700)
    environment = {**os.environ, "FAL_NOTEBOOK_STATE": str(state)}
    with (state / "gateway.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", QUICK], env=environment, stdout=log, stderr=log
        )
    info = _published(state, process)
    deploy(info)
    yield info
    stop(info, state)
    process.wait(30)


def _published(state: Path, process: subprocess.Popen[bytes]) -> GatewayInfo:
    while (info := discovery.find(state)) is None:
        assert process.poll() is None, (state / "gateway.log").read_text()
        time.sleep(0.02)
    return info


def dripped(gateway: GatewayInfo, head: str, each: bytes = b" ") -> bytes:
    """Send a piece of a body again and again until the connection is closed; return the answer."""
    answer = b""
    with Wire(gateway) as wire:
        wire.send(head.replace("TOKEN", gateway.token))
        wire.socket.settimeout(0.02)
        for _ in range(1000):
            try:
                wire.socket.send(each)
                answer += wire.socket.recv(65536)
                time.sleep(0.01)  # it may have closed its half only
            except TimeoutError:
                continue
            except ConnectionError:
                return answer
    pytest.fail(f"its caller may go on sending: {answer!r}")


OWN = "Authorization: Bearer TOKEN\n"
TO = {
    "queue": START.format("/queue/tester/who") + LENGTH,
    "storage": START.format("/storage/files") + OWN + LENGTH,
    "control": START.format("/api/apps/tester") + OWN + LENGTH,
    "a blob": START.replace("POST", "PUT").format(f"/api/blobs/{'0' * 64}") + OWN + LENGTH,
    "run": START.format("/run/tester/who") + LENGTH,
}


@pytest.mark.parametrize("to", TO)
def test_a_body_of_one_byte_at_a_time_is_408_and_closed(quick: GatewayInfo, to: str) -> None:
    answer = dripped(quick, TO[to])
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"the body did not come in time"' in answer


def test_chunks_of_one_byte_are_408_and_closed(quick: GatewayInfo) -> None:
    head = START.format("/queue/tester/who") + "Transfer-Encoding: chunked\n\n"
    assert dripped(quick, head, b"1\r\n \r\n").startswith(b"HTTP/1.1 408 ")


def test_a_body_at_the_pace_of_an_old_telephone_is_taken(quick: GatewayInfo) -> None:
    def body() -> Iterator[bytes]:
        yield b"{"
        for _ in range(10):
            time.sleep(0.2)
            yield b" " * 200
        yield b"}"

    assert httpx.post(f"{quick.url}/queue/tester/who", content=body()).status_code == 200


REFUSED = {
    "an app that is none": (START.format("/run/tester/none") + LENGTH, 404),
    "a queue that is none": (START.format("/queue/tester/none") + LENGTH, 404),
    "no key": (START.format("/api/apps/tester") + LENGTH, 401),
    "no such way": (START.format("/api/none") + OWN + LENGTH, 404),
    "a foreign host": (START.format("/run/tester/who").replace("GATEWAY", "h.com") + LENGTH, 403),
    "too much": (START.format("/run/tester/who") + "Content-Length: 99999999999\n\n", 413),
    "its last": (START.format("/api/none") + OWN + "Connection: close\n" + LENGTH, 404),
    "HTTP/1.0": (START.format("/api/none").replace("1.1", "1.0") + OWN + LENGTH, 404),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("each", [b" ", b" " * 500])
def test_who_is_refused_sends_no_more_for_long(quick: GatewayInfo, case: str, each: bytes) -> None:
    head, status = REFUSED[case]
    answer = dripped(quick, head, each)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert answer.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("case", REFUSED)
def test_who_is_refused_and_silent_is_let_go(quick: GatewayInfo, case: str) -> None:
    head, status = REFUSED[case]
    with Wire(quick) as wire:
        wire.send(head.replace("TOKEN", quick.token))
        assert wire.rest().startswith(b"HTTP/1.1 %d " % status)


@pytest.mark.parametrize("case", ["too much", "its last", "HTTP/1.0"])
def test_an_answer_outlives_what_is_sent_behind_it(quick: GatewayInfo, case: str) -> None:
    head, status = REFUSED[case]
    with Wire(quick) as wire:
        wire.send(head.replace("TOKEN", quick.token))
        for _ in range(20):
            wire.send(b" " * 4000)
            time.sleep(0.01)
        assert wire.rest().startswith(b"HTTP/1.1 %d " % status)


def test_who_ends_its_request_after_the_answer_keeps_its_connection(quick: GatewayInfo) -> None:
    head = START.format("/api/apps/tester") + "Content-Length: 4\n\n"
    with Wire(quick) as wire:
        for _ in range(3):
            wire.send(head).send("{ ")
            assert wire.response()[0] == 401
            wire.send(" }")


def test_nothing_is_read_behind_an_answer_that_is_the_last(quick: GatewayInfo) -> None:
    with Wire(quick) as wire:
        wire.send(REFUSED["too much"][0]).head()
        wire.send(START.format("/run/tester/who") + "Content-Length: 2\n\n{}" * 9)
        assert b"HTTP/1.1" not in wire.rest()
