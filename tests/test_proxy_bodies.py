"""Bodies on their way through ``/run``: how large, how sent, how slow."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from typing import Any

import httpx
import psutil
import pytest
from serving import Wire, deployed, in_flight, run_url

from fal_notebook.discovery import GatewayInfo

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
