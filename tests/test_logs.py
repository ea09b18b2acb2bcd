"""Lines of an app's runners: the last ones, filtered, followed, whatever was written."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from serving import Wire, control, deployed, run_url

from fal_notebook.discovery import GatewayInfo
from fal_notebook.gateway import paths
from fal_notebook.gateway.operations.logs import READ_AT_MOST, LogReader, parse
from fal_notebook.gateway.store import RunnerRow

TALKS = """
import os, sys
def talks(text: str) -> int:
    print(text)
    print("aside", file=sys.stderr)
    return os.getpid()
"""


@pytest.fixture(scope="module")
def talks(gateway: GatewayInfo) -> Iterator[str]:
    with deployed(TALKS, serve=True, auth="public", max_concurrency=1, keep_alive=60) as handle:
        yield run_url(gateway, handle)


def read(gateway: GatewayInfo, **filters: Any) -> list[dict[str, Any]]:
    with control(gateway) as client:
        return list(client.get("/api/apps/tester/talks/logs", params=filters).json())


def test_lines_name_their_request_runner_and_level(gateway: GatewayInfo, talks: str) -> None:
    ids = [
        httpx.post(talks, json={"text": f"hello {n}"}).headers["x-fal-request-id"] for n in (1, 2)
    ]
    lines = read(gateway, request=ids[1])
    assert [(x["message"], x["level"]) for x in lines] == [("hello 2", "INFO"), ("aside", "ERROR")]
    runner = lines[0]["runner"]
    assert [x["message"] for x in read(gateway, tail=3)] == ["aside", "hello 2", "aside"]
    assert len(read(gateway, runner=runner)) >= 4
    assert read(gateway, runner="nobody") == []
    assert read(gateway, tail=0) == []


def test_a_follower_sees_new_lines_until_it_leaves(gateway: GatewayInfo, talks: str) -> None:
    with control(gateway) as client:
        query = {"follow": True, "tail": 0}
        with client.stream("GET", "/api/apps/tester/talks/logs", params=query) as answer:
            httpx.post(talks, json={"text": "live\nsecond"})
            lines = (json.loads(x[6:]) for x in answer.iter_lines() if x.startswith("data: "))
            assert [next(lines)["message"] for _ in range(3)] == ["live", "second", "aside"]


def test_a_follower_that_leaves_costs_nothing(
    gateway: GatewayInfo, talks: str, eventually: Any
) -> None:
    process = psutil.Process(gateway.pid)
    before = process.num_fds()
    for _ in range(20):
        with Wire(gateway) as wire:
            wire.send(
                "GET /api/apps/tester/talks/logs?follow=true HTTP/1.1\nHost: GATEWAY\n"
                f"Authorization: Bearer {gateway.token}\n\n"
            )
            assert wire.head()[0] == 200
    eventually(lambda: process.num_fds() <= before)


def test_the_follower_of_a_deleted_app_ends(gateway: GatewayInfo) -> None:
    with (
        control(gateway) as client,
        deployed("def brief() -> int:\n    return 1\n") as handle,
        client.stream("GET", "/api/apps/tester/brief/logs", params={"follow": True}) as answer,
    ):
        handle.delete()
        assert answer.read() is not None


# --- files --------------------------------------------------------------------------------------
def record(message: str, at: float, request: str | None = None) -> bytes:
    data = {"at": at, "level": "INFO", "request": request, "message": message}
    return b"\x1e" + json.dumps(data).encode() + b"\n"


def runner(state: Path, identity: str, content: bytes, ended: float | None = None) -> RunnerRow:
    paths.runner_log(state, identity).write_bytes(content)
    return RunnerRow(identity, "me", "app", "r", "IDLE", "s", "XS", created_at=1.0, ended_at=ended)


def messages(lines: list[dict[str, Any]]) -> list[str]:
    return [line["message"] for line in lines]


async def test_lines_of_several_runners_are_in_the_order_of_time(tmp_path: Path) -> None:
    rows = [
        runner(tmp_path, "b", record("2", 2.0) + b"raw after 2\n" + record("4", 4.0)),
        runner(tmp_path, "a", record("1", 1.5) + record("3", 3.0), ended=3.5),
    ]
    reader = LogReader(tmp_path, "", "")
    assert messages(await reader.last(rows, 10)) == ["1", "2", "raw after 2", "3", "4"]
    assert messages(await LogReader(tmp_path, "", "").last(rows, 2)) == ["3", "4"]
    with paths.runner_log(tmp_path, "b").open("ab") as file:
        file.write(b"half")
        file.flush()
        assert await reader.new(rows) == []
        file.write(b" done\n")
        file.flush()
        assert messages(await reader.new(rows)) == ["half done"]
        assert await reader.new(rows) == []


async def test_the_last_words_of_a_runner_need_no_newline(tmp_path: Path) -> None:
    row = runner(tmp_path, "a", b"one\nSegmentation fault", ended=2.0)
    assert messages(await LogReader(tmp_path, "", "").last([row], 10)) == [
        "one",
        "Segmentation fault",
    ]


async def test_a_huge_log_is_read_from_its_end(tmp_path: Path) -> None:
    line = b"x" * 999 + b"\n"
    row = runner(tmp_path, "a", line * 100_000 + record("last", 5.0))
    started = time.monotonic()
    lines = await LogReader(tmp_path, "", "").last([row], 3)
    assert messages(lines) == ["x" * 999] * 2 + ["last"]
    assert time.monotonic() - started < 2


async def test_a_line_longer_than_the_window_does_not_stop_the_reader(tmp_path: Path) -> None:
    row = runner(tmp_path, "a", b"start\n")
    reader = LogReader(tmp_path, "", "")
    assert messages(await reader.last([row], 5)) == ["start"]
    with paths.runner_log(tmp_path, "a").open("ab") as file:
        file.write(b"y" * (2 * READ_AT_MOST + 5) + b"\nafter\n")
    found: list[str] = []
    while "after" not in found:
        new = messages(await reader.new([row]))
        assert new
        found += new
    assert "".join(found[:-1]) == "y" * (2 * READ_AT_MOST + 5)


async def test_what_is_no_text_is_shown_with_marks(tmp_path: Path) -> None:
    row = runner(tmp_path, "a", b"\xff\xfe caf\xc3\xa9\r\n\n\x1enot json\n\x1e5\n\x1e{}\n")
    assert messages(await LogReader(tmp_path, "", "").last([row], 10)) == [
        "\ufffd\ufffd café\r",
        "",
        "not json",
        "5",
        "{}",
    ]


def test_only_whole_records_are_taken_for_records() -> None:
    for text in ('\x1e{"at": "x"}', '\x1e{"at": null, "level": 1}', "\x1e[]", "\x1enull", "\x1e"):
        assert parse(text, "r")["at"] is None
