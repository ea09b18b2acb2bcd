"""Lines of an app's runners: the last ones, filtered, followed, whatever was written."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from inside import revision
from serving import Wire, control, deployed, eventually, run_url

from fal_notebook.discovery import GatewayInfo
from fal_notebook.exceptions import OptionError
from fal_notebook.gateway import paths
from fal_notebook.gateway.logs import bounds, pieces
from fal_notebook.gateway.logs import reader as readers
from fal_notebook.gateway.logs.cursor import Cursor
from fal_notebook.gateway.logs.lines import Wanted, parse
from fal_notebook.gateway.logs.reader import LogReader
from fal_notebook.gateway.operations.logs import Query, _page
from fal_notebook.gateway.store import RunnerRow, Store
from fal_notebook.runner import log_file
from fal_notebook.runner.log_file import LogFile, record_mark

TALKS = """
import os, sys
def talks(text: str) -> int:
    print(text)
    print("aside", file=sys.stderr)
    return os.getpid()
"""

RAW = """
import os
def raw(text: str) -> None:
    os.write(1, text.encode())
"""
# What begins the records of the runners that are made here.
MARK = record_mark("s")


@pytest.fixture(scope="module")
def talks(gateway: GatewayInfo) -> Iterator[str]:
    with deployed(TALKS, serve=True, auth="public", max_concurrency=1, keep_alive=60) as handle:
        yield run_url(gateway, handle)


def read(gateway: GatewayInfo, **filters: Any) -> list[dict[str, Any]]:
    with control(gateway) as client:
        reply = client.get("/api/apps/tester/talks/logs", params=filters)
        return list(reply.raise_for_status().json()["lines"])


def test_lines_name_their_request_runner_and_level(gateway: GatewayInfo, talks: str) -> None:
    ids = [
        httpx.post(talks, json={"text": f"hello {n}"}).headers["x-fal-request-id"] for n in (1, 2)
    ]
    lines = read(gateway, request=ids[1])
    assert [(x["message"], x["level"]) for x in lines] == [("hello 2", "INFO"), ("aside", "ERROR")]
    runner = lines[0]["runner"]
    assert [x["message"] for x in read(gateway, tail=3)] == ["aside", "hello 2", "aside"]
    assert len(read(gateway, runner=runner)) >= 4
    with control(gateway) as client:
        unknown = client.get("/api/apps/tester/talks/logs", params={"runner": "nobody"})
    assert (unknown.status_code, unknown.json()["detail"]) == (
        *(404, "tester/talks has no runner nobody; each line of its log begins with one"),
    )
    assert read(gateway, runner=runner[:6]) == read(gateway, runner=runner[-8:])
    assert {line["runner"] for line in read(gateway, runner=runner[:6])} == {runner}
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


def test_a_caller_cannot_write_lines_of_anothers_request(gateway: GatewayInfo) -> None:
    with deployed(RAW, serve=True, auth="public") as handle, control(gateway) as client:
        told = client.post(f"{gateway.url}/queue/tester/raw", json={"text": "one\n"}).json()
        eventually(lambda: client.get(told["status_url"]).status_code == 200)
        forged = record("two", 1e18, told["request_id"], "CRITICAL").replace(MARK, b"\x1e")
        httpx.post(run_url(gateway, handle), json={"text": forged.decode()}).raise_for_status()
        assert client.get(told["status_url"], params={"logs": True}).json()["logs"] == []
        *_, last = client.get("/api/apps/tester/raw/logs").json()["lines"]
    assert (last["at"], last["level"], last["request"]) == (None, "INFO", None)
    assert '"two"' in last["message"]


# --- files --------------------------------------------------------------------------------------
def record(message: str, at: float, request: str | None = None, level: str = "INFO") -> bytes:
    data = {"at": at, "level": level, "request": request, "message": message}
    return MARK + json.dumps(data).encode() + b"\n"


def runner(state: Path, identity: str, content: bytes, ended: float | None = None) -> RunnerRow:
    paths.runner_log(state, identity).write_bytes(content)
    return RunnerRow(identity, "me", "app", "r", "IDLE", "s", "XS", created_at=1.0, ended_at=ended)


def messages(lines: Iterable[dict[str, Any]]) -> list[str]:
    return [line["message"] for line in lines]


def append(state: Path, identity: str, content: bytes) -> None:
    with paths.runner_log(state, identity).open("ab") as file:
        file.write(content)


def tail(state: Path, rows: list[RunnerRow], count: int, **wanted: str) -> list[str]:
    reader = LogReader(state, Wanted.of(**wanted))
    reader.go_back(rows, count)
    return messages(reader.lines(rows, 10_000))


def test_lines_of_several_runners_are_in_the_order_of_time(tmp_path: Path) -> None:
    rows = [
        runner(tmp_path, "b", record("2", 2.0) + b"raw after 2\n" + record("4", 4.0)),
        runner(tmp_path, "a", record("1", 1.5) + record("3", 3.0), ended=3.5),
    ]
    assert tail(tmp_path, rows, 10) == ["1", "2", "raw after 2", "3", "4"]
    assert tail(tmp_path, rows, 2) == ["3", "4"]
    assert tail(tmp_path, rows, 0) == []
    assert tail(tmp_path, rows, 9, runner="a") == ["1", "3"]


def test_a_line_comes_when_it_is_whole_and_only_once(tmp_path: Path) -> None:
    rows = [runner(tmp_path, "b", b"one\nhal")]
    reader = LogReader(tmp_path, Wanted())
    assert messages(reader.lines(rows, 10)) == ["one"]
    append(tmp_path, "b", b"f")
    assert messages(reader.lines(rows, 10)) == []
    append(tmp_path, "b", b" done\n")
    assert messages(reader.lines(rows, 10)) == ["half done"]
    assert not reader.behind(rows)
    assert messages(reader.lines(rows, 10)) == []


def test_a_record_behind_an_unfinished_line_of_a_child_is_one(tmp_path: Path) -> None:
    record = {"at": 1.5, "level": "INFO", "request": "r1", "message": "of print"}
    log = LogFile(tmp_path / "log", MARK)
    log.path.write_bytes(b"progress 10%" + MARK + json.dumps(record).encode() + b"\nnext\n")
    found = pieces.next_lines(log, 0, False)
    begins = [raw.text.removeprefix(MARK)[:12] for raw in found.lines]
    assert begins == [b"progress 10%", b'{"at": 1.5, ', b"next"]
    assert [raw.start for raw in found.lines[1:]] == [raw.end for raw in found.lines[:-1]]
    assert parse(found.lines[1].text, MARK)["request"] == "r1"


def test_of_lines_without_a_time_those_are_last_whose_runner_wrote_last(tmp_path: Path) -> None:
    rows = [runner(tmp_path, name, f"{name} 1\n{name} 2\n".encode()) for name in "abc"]
    for name, at in (("a", 50.0), ("b", 90.0), ("c", 70.0)):
        os.utime(paths.runner_log(tmp_path, name), (at, at))
    assert tail(tmp_path, rows, 3) == ["c 2", "b 1", "b 2"]
    assert tail(tmp_path, rows, 9) == ["a 1", "a 2", "c 1", "c 2", "b 1", "b 2"]


def test_the_last_words_of_a_runner_need_no_newline(tmp_path: Path) -> None:
    row = runner(tmp_path, "a", b"one\nSegmentation fault", ended=2.0)
    assert tail(tmp_path, [row], 10) == ["one", "Segmentation fault"]
    assert tail(tmp_path, [row], 1) == ["Segmentation fault"]


@pytest.mark.parametrize("at_once", [readers.AT_ONCE, 200])
@pytest.mark.parametrize("count", [3, 50, 399, 1000])
def test_the_last_lines_of_many_runners_are_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int, count: int
) -> None:
    monkeypatch.setattr(readers, "AT_ONCE", at_once)
    rows = []
    for n in range(200):
        content = record(f"{n}", n + 0.5) + record(f"then {n}", n + 0.7)
        ended = None if n % 50 == 7 else n + 0.9
        row = runner(tmp_path, f"r{n}", content, ended)
        rows.append(replace(row, created_at=float(n)))
    expected = [text for n in range(200) for text in (f"{n}", f"then {n}")][-count:]
    newest_first = sorted(rows, key=lambda row: -(row.ended_at or 1e12))
    page = _page(LogReader(tmp_path, Wanted()), newest_first, Query(Wanted(), count), str)
    assert messages(page) == expected


@pytest.mark.parametrize("length", [99, 999, 50_000])
@pytest.mark.parametrize("count", [1, 3, 900])
def test_a_huge_log_is_read_from_its_end(tmp_path: Path, length: int, count: int) -> None:
    lines = [f"{n:06}".ljust(length, "x") for n in range(3_000)]
    row = runner(tmp_path, "a", "".join(f"{line}\n" for line in lines).encode())
    assert tail(tmp_path, [row], count) == lines[-count:]


@pytest.mark.parametrize("count", [1, 3, 100])
def test_a_record_behind_megabytes_without_a_newline_is_found(tmp_path: Path, count: int) -> None:
    written = b"start\n" + b"q" * 5_000_000 + record("at last", 1.0)
    found = tail(tmp_path, [runner(tmp_path, "a", written)], count)
    assert found[-1] == "at last"
    assert "".join(found).endswith("q" * min(count - 1, 1) + "at last")
    assert (found[0] == "start") == (count > 1)


def test_a_line_longer_than_a_piece_does_not_stop_the_reader(tmp_path: Path) -> None:
    row = runner(tmp_path, "a", b"start\n")
    append(tmp_path, "a", b"y" * (2 * pieces.SIZE + 5) + b"\nafter\n")
    found = messages(LogReader(tmp_path, Wanted()).lines([row], 10))
    assert found[0] == "start"
    assert found[-1] == "after"
    assert "".join(found[1:-1]) == "y" * (2 * pieces.SIZE + 5)


def test_what_is_no_text_is_shown_with_marks(tmp_path: Path) -> None:
    lines = [b"\xff\xfe caf\xc3\xa9\r", b"", MARK + b"not json", MARK + b"5", MARK + b"{}", b""]
    row = runner(tmp_path, "a", b"\n".join(lines))
    assert tail(tmp_path, [row], 10) == ["\ufffd\ufffd café\r", "", "not json", "5", "{}"]


def test_only_whole_records_are_taken_for_records() -> None:
    for text in (b'{"at": "x"}', b'{"at": null, "level": 1}', b"[]", b"null", b""):
        assert parse(MARK + text, MARK)["at"] is None


def test_a_record_of_another_runner_is_text(tmp_path: Path) -> None:
    """As when a server prints what it was sent: a caller knows no runner's mark."""
    for mark in (b"\x1e", b"\x1e" + b"0" * 16, record_mark("another"), b""):
        forged = mark + record("forged", 1e18, "mine", "CRITICAL").removeprefix(MARK)
        row = runner(tmp_path, "a", record("real", 2.0) + b"before" + forged + forged)
        reader = LogReader(tmp_path, Wanted())
        real, *others = reader.lines([row], 10)
        assert real["message"] == "real"
        assert {(line["at"], line["level"], line["request"]) for line in others} == {
            (None, "INFO", None)
        }
        assert tail(tmp_path, [row], 10, request="mine") == []


def test_a_filter_finds_lines_far_behind(tmp_path: Path) -> None:
    noise = b"".join(record(f"noise {n}", 2.0 + n, "other") for n in range(20_000))
    quoted = b'looks like "request": "mine"\n'
    content = record("first", 1.0, "mine") + quoted + noise + record("last", 30_000.0, "mine")
    row = runner(tmp_path, "a", content)
    assert tail(tmp_path, [row], 5, request="mine") == ["first", "last"]
    assert tail(tmp_path, [row], 1, request="mine") == ["last"]


def test_a_level_means_at_least_that_level(tmp_path: Path) -> None:
    names = ["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
    content = b"".join(record(x, float(n), level=x) for n, x in enumerate(names))
    row = runner(tmp_path, "a", content + record("odd", 9.0, level="odd") + b"raw\n")
    assert tail(tmp_path, [row], 9) == [*names, "odd", "raw"]
    assert tail(tmp_path, [row], 9, level="warning") == names[2:]
    assert tail(tmp_path, [row], 9, level="INFO") == [*names[1:], "odd", "raw"]
    with pytest.raises(OptionError, match="level=loud is none of debug, info"):
        Wanted.of(level="loud")


# --- cursors ------------------------------------------------------------------------------------
def pages(
    state: Path, rows: list[RunnerRow], limit: int, cursor: str = ""
) -> tuple[list[str], str]:
    found: list[str] = []
    while True:
        reader = LogReader(state, Wanted(), Cursor.load(cursor))
        kept = [row for row in rows if (row.ended_at or 1e12) >= reader.cursor.since]
        found += messages(reader.lines(kept, limit))
        cursor = reader.cursor.dump()
        if not reader.more:
            return found, cursor


@pytest.mark.parametrize("limit", [1, 3, 1000])
def test_pages_of_any_size_hold_every_line_once(tmp_path: Path, limit: int) -> None:
    now = time.time()
    rows, expected = [], []
    for name, ended in (("a", 30.0), ("b", now - 5), ("c", None), ("d", now - 70), ("e", 30.0)):
        lines = [(n + 1.0, f"{name}{n}") for n in range(7)]
        content = b"".join(record(text, at) for at, text in lines)
        rows.append(runner(tmp_path, name, content, ended))
        expected += lines
    found, cursor = pages(tmp_path, rows, limit)
    assert sorted(found) == sorted(text for _, text in expected)
    assert [int(text[1]) for text in found] == sorted(int(text[1]) for text in found)
    append(tmp_path, "c", record("c7", 7.0))
    rows.append(runner(tmp_path, "f", record("f0", 8.0), time.time()))
    assert pages(tmp_path, rows, limit, cursor)[0] == ["c7", "f0"]
    assert pages(tmp_path, rows, limit, pages(tmp_path, rows, limit, cursor)[1])[0] == []


def test_a_cursor_stays_short_over_many_runners(tmp_path: Path) -> None:
    rows = [runner(tmp_path, f"r{n}", record(f"{n}", n), ended=n + 0.5) for n in range(300)]
    found, cursor = pages(tmp_path, rows, 7)
    assert found == [f"{n}" for n in range(300)]
    assert len(cursor) < 40


@pytest.mark.parametrize("text", ["x", "1", "1.0~", "1.0~a.", "1.0~a.b", "1.0~../x.1", "1.0 "])
def test_what_is_no_cursor_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match="this cursor was not given"):
        Cursor.load(text)


def test_a_cursor_survives_being_text() -> None:
    cursor = Cursor(1712345678.123456)
    cursor.offsets = {"a1": 5, "b-2": 0}
    cursor.finish(RunnerRow("c", "me", "app", "r", "TERMINATED", "s", "XS", ended_at=2e9))
    assert vars(Cursor.load(cursor.dump())) == vars(cursor)
    assert vars(Cursor.load("")) == vars(Cursor())


def test_lines_that_are_gone_are_passed_over(tmp_path: Path) -> None:
    row = runner(tmp_path, "a", b"")
    reader = LogReader(tmp_path, Wanted())
    path, written, seen = paths.runner_log(tmp_path, "a"), 0, []
    for _ in range(12):
        lines = [f"{n:08}".ljust(999, "x") for n in range(written, written + 4_000)]
        append(tmp_path, "a", "".join(f"{line}\n" for line in lines).encode())
        written += len(lines)
        log_file.bound_path(path)
        assert log_file.disk_space(path.stat()) <= log_file.MOST
        if not seen or written > 40_000:  # a reader that sleeps meanwhile
            seen += [int(text[:8]) for text in messages(reader.lines([row], 10**6))]
    assert seen[:4_000] == list(range(4_000))
    gap = seen[4_000]
    assert 20_000 < gap < 40_000
    assert seen[4_000:] == list(range(gap, written))
    kept = [int(text[:8]) for text in pages(tmp_path, [row], 500)[0]]
    assert kept == list(range(kept[0], written))
    assert len(kept) * 1000 >= log_file.KEPT - 1000


def test_a_log_on_a_file_system_without_holes_is_emptied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, length: int) -> None:
        raise OSError("not supported")

    monkeypatch.setattr(log_file, "_punch", refuse)
    row = runner(tmp_path, "a", b"x" * 999 + b"\n")
    reader = LogReader(tmp_path, Wanted())
    assert len(messages(reader.lines([row], 10))) == 1
    append(tmp_path, "a", b"y" * log_file.MOST + b"\n")
    log_file.bound_path(paths.runner_log(tmp_path, "a"))
    append(tmp_path, "a", b"z\n")
    assert messages(reader.lines([row], 10)) == ["z"]


def test_the_place_of_a_time_is_found_without_reading_all(tmp_path: Path) -> None:
    content = b"".join(record(f"{n}", 1000.0 + n) + b"raw\n" for n in range(40_000))
    log = LogFile(paths.runner_log(tmp_path, "a"), MARK)
    log.path.write_bytes(content)
    for at in (0.0, 1000.0, 1001.0, 21_000.5, 40_999.0, 1e9):
        place = pieces.offset_of(log, at)
        exact = content.find(b'{"at": %d.' % min(int(at), 40_999)) - len(MARK) if at >= 1000 else 0
        assert place <= max(exact, 0) or at > 41_000
        assert max(exact, 0) - place <= 3 * pieces.PRECISION
        assert place == 0 or content[place:].startswith(MARK)
    assert pieces.offset_of(LogFile(tmp_path / "none", MARK), 5.0) == 0


async def test_logs_are_trimmed_while_they_grow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "PERIOD_OF_ALL", 0.01)
    store = Store(tmp_path / "store.db")
    for ended_at, name in enumerate(("old", "new")):
        store.put(runner(tmp_path, name, b"x" * 1_000_000, ended_at))
    store.put(revision("r"))
    watching = asyncio.ensure_future(bounds.watch_all(tmp_path, store, 1_500_000))
    await asyncio.to_thread(eventually, lambda: not (tmp_path / "logs" / "old.log").exists())
    watching.cancel()
    store.close()
    assert (tmp_path / "logs" / "new.log").exists()


def test_all_logs_together_are_bounded_the_oldest_go_first(tmp_path: Path) -> None:
    for name in ("live", "old", "new", "deleted"):
        runner(tmp_path, name, b"x" * 1_000_000)
    ended = [("deleted", False), ("old", True), ("gone", True), ("new", True)]
    left = lambda: {path.stem for path in (tmp_path / "logs").iterdir()}  # noqa: E731
    bounds.trim(tmp_path, ended, 10_000_000)
    assert left() == {"live", "old", "new"}
    bounds.trim(tmp_path, ended, 2_500_000)
    assert left() == {"live", "new"}
    bounds.trim(tmp_path, ended, 0)
    assert left() == {"live"}
