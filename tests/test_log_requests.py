"""The lines of a queued request: of all its attempts, and read once however often it is polled."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from test_logs import append, messages, record, runner

from fal_notebook.gateway.logs import of_request, pieces
from fal_notebook.gateway.logs.of_request import RequestLogs
from fal_notebook.gateway.logs.redaction import Redaction
from fal_notebook.gateway.queue.table import QueuedRequest
from fal_notebook.gateway.store import RunnerRow, Store
from fal_notebook.gateway.vault import Vault

NOW = time.time()


def reading(state: Path, store: Store) -> RequestLogs:
    return RequestLogs(state, store, Redaction(store, Vault(state)))


def known(store: Store, row: RunnerRow, ended: float | None = None) -> RunnerRow:
    row.created_at, row.ended_at = NOW - 3600, ended
    with store.transaction():
        store.put(row)
    return row


def queued(**values: Any) -> QueuedRequest:
    number = int((NOW - 100) * 1e6)
    given = {"state": "IN_PROGRESS", "attempts": 1, "runner": "a", "started_at": NOW, **values}
    return QueuedRequest(number, "mine", "me", "app", "POST", b"/", [], None, **given)


async def test_a_poll_reads_only_what_is_new(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = b"".join(record("n" * 900, NOW - 50 + n / 1000, "other") for n in range(15_000))
    known(store, runner(tmp_path, "a", noise + record("one", NOW + 1, "mine")))
    read: list[int] = []
    next_lines = pieces.next_lines

    def counting(*args: Any) -> pieces.Piece:
        piece = next_lines(*args)
        read.append(piece.end - args[1])
        return piece

    monkeypatch.setattr(pieces, "next_lines", counting)
    logs, request = reading(tmp_path, store), queued()
    for _ in range(3):
        assert messages(await logs.of(request)) == ["one"]
    assert len(read) == 1
    assert read[0] < 3_000_000  # of 15 MB: from where its first lines may be
    append(tmp_path, "a", record("two", NOW + 2, "mine") + record("x", NOW + 2, "other"))
    assert messages(await logs.of(request)) == ["one", "two"]
    assert read[1] < 1000
    done = queued(state="COMPLETED", completed_at=NOW + 2)
    assert messages(await logs.of(done)) == ["one", "two"]


async def test_lines_of_every_attempt_are_told(tmp_path: Path, store: Store) -> None:
    known(store, runner(tmp_path, "first", record("try 1", NOW - 90, "mine")), NOW - 80)
    known(store, runner(tmp_path, "other", record("try 2", NOW - 70, "mine")), NOW - 60)
    known(store, runner(tmp_path, "long ago", record("no", NOW - 500, "mine")), NOW - 400)
    known(store, runner(tmp_path, "a", record("try 3", NOW + 1, "mine")))
    logs = reading(tmp_path, store)
    assert messages(await logs.of(queued(attempts=3))) == ["try 1", "try 2", "try 3"]
    assert await logs.of(queued(state="IN_QUEUE", attempts=0, started_at=None)) == []


async def test_what_a_runner_wrote_long_after_is_not_read(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = b"".join(record("l" * 900, NOW + 10 + n, "other") for n in range(5_000))
    known(store, runner(tmp_path, "a", record("one", NOW + 1, "mine") + later))
    calls: list[Any] = []
    next_lines = pieces.next_lines

    def counting(*args: Any) -> pieces.Piece:
        calls.append(args)
        return next_lines(*args)

    monkeypatch.setattr(pieces, "next_lines", counting)
    request = queued(state="COMPLETED", completed_at=NOW + 2)
    logs = reading(tmp_path, store)
    for _ in range(3):
        assert messages(await logs.of(request)) == ["one"]
    assert len(calls) == 2


async def test_the_last_lines_are_told_and_few_requests_are_remembered(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(of_request, "REMEMBERED", 1)
    many = [f"{n}" for n in range(of_request.MOST_LINES * 2 + 500)]
    known(store, runner(tmp_path, "a", b"".join(record(x, NOW, "mine") for x in many)))
    logs = reading(tmp_path, store)
    for request in (queued(), queued(attempts=2), queued()):
        assert messages(await logs.of(request)) == many[-of_request.MOST_LINES :]


async def test_of_long_lines_so_many_are_told_as_are_not_too_much(
    tmp_path: Path, store: Store
) -> None:
    long = [str(n) * 30_000 for n in range(10)] * 10
    known(store, runner(tmp_path, "a", b"".join(record(x, NOW, "mine") for x in long)))
    assert messages(await reading(tmp_path, store).of(queued())) == long[-33:]
