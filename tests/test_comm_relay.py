"""Requests of a widget over its comm, from the kernel's end: pieces, pace, errors, cancels."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator
from typing import Any

import pytest
from serving import ACT, deployed, eventually

from fal_notebook.discovery import GatewayInfo
from fal_notebook.widgets.comm_relay import PIECE, CommRelay


class Browser:
    """The other end of the comm."""

    def __init__(self) -> None:
        self.told: queue.Queue[tuple[dict[str, Any], list[bytes]]] = queue.Queue()
        self.relay = CommRelay(lambda content, pieces: self.told.put((content, list(pieces))))

    def say(self, kind: str, piece: bytes | None = None, **content: Any) -> None:
        pieces = [] if piece is None else [memoryview(piece)]
        self.relay.receive({"op": kind, "id": "1", **content}, pieces)

    def ask(self, method: str, path: str, body: bytes = b"") -> dict[str, Any]:
        """Send a request and return the head of its answer, or why there is none."""
        self.say("request", method=method, path=path, headers={}, size=len(body))
        for at in range(0, len(body), PIECE):
            self.say("body", body[at : at + PIECE])
        return self.told.get(timeout=20)[0]

    def read(self) -> bytes:
        """Return the answer's body, whose pieces are all small."""
        body = b""
        while True:
            self.say("more")
            content, pieces = self.told.get(timeout=20)
            if content["op"] == "end":
                return body
            assert all(len(piece) <= PIECE for piece in pieces)
            body += b"".join(pieces)


@pytest.fixture
def browser(gateway: GatewayInfo) -> Iterator[Browser]:
    browser = Browser()
    yield browser
    browser.say("cancel")
    eventually(lambda: not browser.relay._requests)


def test_large_bodies_pass_both_ways_in_pieces(browser: Browser) -> None:
    with deployed(ACT) as handle:
        path = f"/run/tester/{handle.name}"
        text = b'{"do": "size", "text": "%b"}' % (b"x" * 3_000_000)
        assert browser.ask("POST", path, text)["status"] == 200
        assert browser.read() == b"3000000"
        assert browser.ask("POST", path, b'{"do": "big", "n": 5000000}')["status"] == 200
        assert browser.read() == b"x" * 5_000_000


def test_nothing_is_sent_that_was_not_asked_for(browser: Browser) -> None:
    with deployed(ACT) as handle:
        browser.ask("POST", f"/run/tester/{handle.name}", b'{"do": "big", "n": 5000000}')
        time.sleep(0.3)
        assert browser.told.empty()


def test_a_cancel_ends_the_request_in_its_runner(browser: Browser) -> None:
    with deployed("import asyncio\nasync def naps(): await asyncio.sleep(60)") as handle:
        browser.say("request", method="POST", path=f"/run/tester/{handle.name}", size=0)
        eventually(lambda: handle.status()["in_flight"] == 1)
        browser.say("cancel")
        eventually(lambda: handle.status()["in_flight"] == 0)


def test_what_the_gateway_refuses_is_an_answer(browser: Browser) -> None:
    assert browser.ask("GET", "/api/apps/tester/absent")["status"] == 404


@pytest.mark.parametrize("message", [None, 5, {}, {"id": 5}, {"id": "2", "op": "more"}])
def test_nonsense_is_ignored(browser: Browser, message: Any) -> None:
    browser.relay.receive(message, [])
    assert browser.ask("GET", "/api/gateway")["status"] == 200
    assert browser.read().startswith(b"{")
