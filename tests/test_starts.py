"""Cold starts: their parts add up to what a caller waits, and are kept, bounded and shown."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from serving import control, deployed, events, eventually, start_gateway_again

from fal_notebook import cli
from fal_notebook.discovery import GatewayInfo
from fal_notebook.gateway import starts
from fal_notebook.gateway.operations.starts import medians
from fal_notebook.gateway.starts import Parts, parts
from fal_notebook.gateway.store import RunnerRow, Start, Store
from fal_notebook.handle import Handle
from fal_notebook.runner.link import Link

SLEEP = 0.6
SOURCE = f"""
import time

def setup():
    time.sleep({SLEEP})
    return 1

def cold(model, seconds: float = 0) -> float:
    time.sleep(seconds)
    return seconds
"""


@pytest.fixture
def app(gateway: GatewayInfo) -> Iterator[Handle]:
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(SOURCE, names)
    with deployed(SOURCE, keep_alive=0, setup_function=names["setup"]) as handle:
        eventually(lambda: not handle.runners())  # it is at zero
        yield handle


def newest(app: Handle, number: int) -> dict[str, Any]:
    """Return the newest of so many starts, once its request is answered."""

    def found() -> dict[str, Any] | None:
        known: list[dict[str, Any]] = app.starts()["starts"]
        first = known[0] if known else {"first_byte": None}
        return first if len(known) == number and first["first_byte"] is not None else None

    start: dict[str, Any] = eventually(found)
    return start


def of_parts(start: dict[str, Any]) -> dict[str, float]:
    return {part: start[part] for part in Parts._fields}


@pytest.mark.parametrize("call", [lambda app: app(0.2), lambda app: app.submit(0.2).result()])
def test_the_parts_are_within_what_the_caller_waited(
    app: Handle, call: Callable[[Handle], Any], private_state: Path
) -> None:
    proved = app.starts()["starts"]
    assert [(s["revision"], s["first_byte"]) for s in proved] == [(1, None)]
    begun = time.time()
    assert call(app) == 0.2
    waited = time.time() - begun
    start = newest(app, 2)
    took = of_parts(start)
    assert took["setup"] >= SLEEP
    assert took["first_byte"] >= 0.2
    assert SLEEP + 0.2 <= sum(took.values()) <= waited
    assert min(took.values()) >= 0
    told = [e for e in events(private_state, app.name, "start") if e["runner"] == start["runner"]]
    assert [e["first_byte"] for e in told] == [None, took["first_byte"]]
    assert told[-1]["setup"] == took["setup"]


def test_starts_outlive_the_gateway_and_end_with_the_app(own_gateway: Path) -> None:
    with deployed("def kept(): return 1", keep_alive=0) as kept:
        before = eventually(lambda: kept.starts()["starts"])
        start_gateway_again(own_gateway, eventually)
        assert kept.starts()["starts"] == before
        shown = str(cli.run(["starts", "kept"], "%fal")).splitlines()
        heads = ["queued", "build", "start", "setup", "first", "byte", "together"]
        assert shown[0].split()[-7:] == heads
        assert before[0]["runner"] in shown[1]
        assert shown[-1].startswith("median")
        kept.delete()
        with deployed("def kept(): return 2", min_concurrency=1) as kept:
            assert len(eventually(lambda: kept.starts()["starts"])) == 1


def test_who_waits_for_a_runner_that_is_busy_has_no_part_in_its_start(gateway: GatewayInfo) -> None:
    source = "import time\ndef busy(): time.sleep(0.2)"
    with deployed(source, min_concurrency=1, max_concurrency=1) as busy:
        with ThreadPoolExecutor() as threads:
            list(threads.map(lambda _: busy(), range(3)))
        assert [start["first_byte"] for start in busy.starts()["starts"]] == [None]


def test_the_api_says_when_there_is_no_such_app(gateway: GatewayInfo) -> None:
    with control(gateway) as api:
        assert api.get("/api/apps/tester/nothing/starts").status_code == 404


async def test_a_runner_says_how_long_ago_its_states_began(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A set-up that holds up the runner's event loop, or its GIL, lets it tell them late."""
    now = 100.0
    monkeypatch.setattr("fal_notebook.runner.link.time.monotonic", lambda: now)
    link, told = Link(), asyncio.Queue[dict[str, Any]]()

    async def send(message: dict[str, Any]) -> None:
        for line in message.get("body", b"").splitlines():
            told.put_nowait(json.loads(line))

    link.publish("SETUP")
    now = 130.0
    serving = asyncio.ensure_future(link.serve(asyncio.Event().wait, send))  # type: ignore[arg-type]
    assert await told.get() == {"state": "SETUP", "ago": 30.0}
    link.publish("IDLE", openapi={})
    assert await told.get() == {"state": "IDLE", "openapi": {}, "ago": 0.0}
    serving.cancel()


MARKS = {"decided": 10.0, "begun": 10.5, "process": 12.0, "setup": 12.5, "ready": 20.0}


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, Parts(0.5, 0, 2, 7.5, None)),
        ({"built": 30.0}, Parts(0.5, 30, 2, 7.5, None)),
        ({"pulling": 11.0}, Parts(0.5, 1, 1, 7.5, None)),
        ({"arrived": 4.0}, Parts(6.5, 0, 2, 7.5, None)),
        ({"arrived": 4.0, "answered": 21.0}, Parts(6.5, 0, 2, 7.5, 1)),
        ({"arrived": 15.0, "answered": 21.0}, Parts(0, 0, 2, 7.5, 1)),  # it did not cause it
        ({"setup": 10.0}, Parts(0.5, 0, 0, 10, None)),  # a clock that went back
    ],
)
def test_each_part_is_between_its_marks(more: dict[str, float], expected: Parts) -> None:
    assert parts({**MARKS, **more}) == expected


def test_the_parts_of_who_waited_are_all_of_it() -> None:
    found = parts({**MARKS, "pulling": 11.0, "arrived": 4.0, "answered": 21.0})
    assert sum(value or 0 for value in found) == 21.0 - 4.0


async def test_only_the_first_who_waited_is_watched() -> None:
    told: list[dict[str, float]] = []
    birth = starts.Birth(lambda marks: told.append(dict(marks)))

    async def send(message: Any) -> None: ...

    birth.mark("ready")
    ready = birth.marks["ready"]
    assert birth.watched(send, ready + 1) is send
    first = birth.watched(send, ready - 1)
    assert birth.watched(send, ready - 1) is send
    for kind in ("start", "body"):
        await first({"type": f"http.response.{kind}"})
    while not told:
        await asyncio.sleep(0)
    assert [marks["arrived"] for marks in told] == [ready - 1]
    assert told[0]["answered"] >= ready


def test_the_last_starts_of_each_app_are_kept(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starts, "KEPT", 2)
    monkeypatch.setattr(store, "revision", lambda identity: identity if identity == "v1" else None)
    rows = [(name, n) for n in range(4) for name in ("one", "two")]
    for name, n in rows:
        row = RunnerRow(f"{name}{n}", "o", name, "v1", "IDLE", "s", "XS", created_at=n)
        starts.record(store, row, 1, MARKS)
    gone = RunnerRow("gone", "o", "one", "deleted", "IDLE", "s", "XS", created_at=9)
    starts.record(store, gone, 1, MARKS)
    kept = sorted(start.runner for start in store.select(Start))
    assert kept == ["one2", "one3", "two2", "two3"]


def test_medians_are_of_those_that_have_the_part() -> None:
    def start(setup: float, first_byte: float | None) -> Start:
        return Start("r", "o", "a", 1, "XS", 0.0, 0, 0, 0, setup, first_byte)

    found = medians([start(1, None), start(2, 5.0), start(9, 7.0)])
    assert (found["setup"], found["first_byte"]) == (2, 6.0)
    assert medians([])["setup"] is None
