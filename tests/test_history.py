"""What became of requests over time: counted in memory, kept at falling resolution, asked for."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from gateway_processes import deploy, end, stop
from hypothesis import given, settings
from hypothesis import strategies as st
from inside import fleet_of
from runner_bench import define, notebook
from serving import control, deployed, eventually, run_url

import fal_notebook as fal
from fal_notebook import cli, discovery, stats_view
from fal_notebook.discovery import GatewayInfo
from fal_notebook.exceptions import NotFoundError
from fal_notebook.gateway.endpoint_names import MOST, OTHER, EndpointNames
from fal_notebook.gateway.fleet import Fleet
from fal_notebook.gateway.history import POINTS, TIERS, Counts, quantile, resolution, summed
from fal_notebook.gateway.metrics import LATENCY_BUCKETS
from fal_notebook.gateway.store import App, Caller, Store
from fal_notebook.gateway.tally import AHEAD, PERIOD, Tally
from fal_notebook.handle import Handle
from fal_notebook.sparkline import sparkline

# A Sunday; no step of any tier begins here.
NOW = 1_800_000_007.0
DOCUMENT = {"paths": {"/": {}, "/generate": {}, "/items/{id}": {}, "/files/{name:path}": {}}}

answers = st.lists(st.tuples(st.integers(100, 599), st.floats(0, 4000)), min_size=1)


def counted(requests: list[tuple[int, float]]) -> Counts:
    counts = Counts()
    for status, seconds in requests:
        counts.count(status, seconds)
    return counts


# --- counts and their sums ------------------------------------------------------------------
@given(answers, st.integers(0, 100))
def test_parts_add_up_to_the_whole(requests: list[tuple[int, float]], cut: int) -> None:
    parts = counted(requests[:cut]), counted(requests[cut:])
    assert summed(parts).values == counted(requests).values
    told = summed(parts).told()
    assert told["requests"] == len(requests)
    assert told["errors"]["5xx"] == sum(status >= 500 for status, _ in requests)
    assert told["errors"]["4xx"] == sum(400 <= status < 500 for status, _ in requests)


@given(answers, st.sampled_from([0.01, 0.5, 0.95, 0.99, 1.0]))
def test_a_quantile_is_in_the_bucket_of_the_exact_one(
    requests: list[tuple[int, float]], part: float
) -> None:
    exact = sorted(seconds for _, seconds in requests)
    rank = next(n for n in range(1, len(exact) + 1) if n >= part * len(exact))
    found = quantile(counted(requests).values[5:], part)
    bounds = (0.0, *LATENCY_BUCKETS)
    upper = next((b for b in LATENCY_BUCKETS if b >= exact[rank - 1]), LATENCY_BUCKETS[-1])
    assert found is not None
    assert bounds[bounds.index(upper) - 1] <= found <= upper or found == bounds[-1]


def test_quantiles_are_those_of_prometheus() -> None:
    assert quantile(Counts().values[5:], 0.5) is None
    ten = counted([(200, 0.2)] * 10).values[5:]
    assert quantile(ten, 0.5) == pytest.approx(0.175)  # half of the way from 0.1 to 0.25
    assert quantile(counted([(200, 9999.0)]).values[5:], 0.5) == 3600


def test_an_answer_that_never_began_is_a_failure() -> None:
    assert counted([(0, 1.0)]).told()["errors"] == {"4xx": 0, "5xx": 1}
    assert counted([(101, 1.0)]).told()["errors"] == {"4xx": 0, "5xx": 0}
    assert counted([(200, -5.0)]).told()["requests"] == 1  # a clock was set back meanwhile


@pytest.mark.parametrize(
    ("ago", "wanted", "tier", "step"),
    [
        (60, None, 10, 10),
        (3600.2, None, 10, 10),
        (3600, 60, 60, 60),
        (24 * 3600, 1800, 600, 1800),
        (3600, None, 10, 10),
        (3605, 50, 10, 50),  # who asked looked at its clock before
        (2 * 3600, None, 60, 60),
        (24 * 3600, 1000, 60, 1020),
        (7 * 24 * 3600, None, 600, 1800),
        (7 * 24 * 3600, 3 * 3600, 3600, 3 * 3600),
        (30 * 24 * 3600, None, 3600, 7200),
        (300 * 24 * 3600, None, 3600, 72000),
        (60, 1e-9, 10, 10),
    ],
)
def test_the_finest_step_that_was_kept_is_told(
    ago: float, wanted: float | None, tier: int, step: int
) -> None:
    found = resolution(NOW - ago, NOW, NOW, wanted)
    assert (found[0].step, found[1]) == (tier, step)
    assert wanted is not None or ago / found[1] <= POINTS + 1


def test_steps_fit_into_each_other_and_writes_into_the_finest() -> None:
    assert TIERS[0].step % PERIOD == 0
    for finer, coarser in pairwise(TIERS):
        assert coarser.step % finer.step == 0
        assert coarser.kept > finer.kept
    assert TIERS[-1].kept == 30 * 24 * 3600


def test_bars_show_what_is_above_zero() -> None:
    assert sparkline([0, 1, 500, 1000]) == " ▁▄█"
    assert sparkline([0, 0.001]) == " █"
    assert sparkline([]) == ""


# --- names of endpoints ---------------------------------------------------------------------
def test_endpoints_have_the_names_of_the_schema() -> None:
    names = EndpointNames(lambda: ())
    for path, name in {
        b"/": "/",
        b"/generate": "/generate",
        b"/generate/": "/generate",
        b"/items/7": "/items/{id}",
        b"/items/7/": "/items/{id}",
        b"/items/7/8": OTHER,
        b"/files/a/b.txt": "/files/{name:path}",
        b"/nowhere": OTHER,
        b"/\xff\n": OTHER,
    }.items():
        assert names.of(path, 404, DOCUMENT) == name


def test_a_path_that_takes_long_to_compare_is_not_compared() -> None:
    hard = "/" + "{a:path}" * 9 + "/end"
    names = EndpointNames(lambda: ())
    assert names.of(b"/a/b/c/d/e/f/g/h/i/end", 200, {"paths": {hard: {}}}) == hard
    assert names.of(b"/" + b"/" * 60_000, 404, {"paths": {hard: {}}}) == OTHER


def test_a_path_without_schema_has_a_name_once_it_was_answered_well() -> None:
    names = EndpointNames(lambda: ["/known", OTHER])
    assert names.of(b"/known", 500, {}) == "/known"
    assert names.of(b"/new", 404, {}) == OTHER
    assert names.of(b"/new", 200, {}) == "/new"
    assert names.of(b"/new", 500, {}) == "/new"
    for path in (b"/" + b"x" * 1000, b"/\x9b31m", b"/\x1b[31m"):
        assert names.of(path, 200, {}) == OTHER
    assert names.of(b"/new", 404, {"paths": ["no", "mapping"]}) == "/new"
    assert names.of(b"/generate", 404, DOCUMENT) == "/generate"  # of the next revision


paths = st.binary(max_size=30).map(lambda path: b"/" + path)


@given(st.lists(st.tuples(paths, st.integers(100, 599)), max_size=300), st.booleans())
def test_whatever_callers_ask_for_names_are_few(
    requests: list[tuple[bytes, int]], restarted: bool
) -> None:
    found: set[str] = set()
    names = EndpointNames(lambda: found)
    for number, (path, status) in enumerate(requests):
        if restarted and number == len(requests) // 2:
            names = EndpointNames(lambda: found)
        found.add(names.of(path, status, DOCUMENT))
    assert len(found) <= MOST + len(DOCUMENT["paths"]) + 1


def test_room_for_names_does_not_grow_with_restarts() -> None:
    found: set[str] = set()
    for life in range(5):
        names = EndpointNames(lambda: found)
        for number in range(MOST):
            found.add(names.of(b"/%d/%d" % (life, number), 200, {}))
    assert len(found) == MOST + 1


# --- the tally ------------------------------------------------------------------------------
class Clock:
    """A wall clock that a test sets."""

    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def fleet(store: Store) -> Fleet:
    """An app that is in the store."""
    fleet = fleet_of(0)
    assert fleet.revision is not None
    fleet.revision.openapi = DOCUMENT
    store.put(App("o", "a", "v1", "a test"))
    return fleet


def kept(store: Store, step: int = 10) -> list[tuple[str, int, int]]:
    """Return endpoint, time and number of requests of all rows of a tier."""
    rows = store.history("endpoint || ' ' || at", "step = ?", step)
    found = [(*key.rsplit(" ", 1), sum(counts[:5])) for key, counts in rows]
    return [(endpoint, int(at), number) for endpoint, at, number in found]


async def test_every_tier_has_every_count(store: Store, fleet: Fleet, clock: Clock) -> None:
    tally = Tally(store, clock)
    count = tally.of(fleet)
    for seconds in range(0, 7200, 30):
        clock.now = NOW + seconds
        count(b"/generate", 500 if seconds % 60 else 200, 0.2, "")
        count(b"/%d" % seconds, 404, 0.0, "")
        tally.write()
    for tier in TIERS:
        rows = kept(store, tier.step)
        assert {endpoint for endpoint, _, _ in rows} == {"/generate", OTHER}
        assert sum(number for _, _, number in rows) == 480
        assert all(at % tier.step == 0 for _, at, _ in rows)
        assert len(rows) <= 2 * (7200 / tier.step + 1)
    failed = store.history("endpoint", "step = 60 AND endpoint = '/generate'")
    assert [(name, counts[4]) for name, counts in failed] == [("/generate", 120)]


async def test_nothing_is_written_per_request(store: Store, fleet: Fleet, clock: Clock) -> None:
    tally = Tally(store, clock)
    count, before = tally.of(fleet), store._db.total_changes
    for _ in range(1000):
        count(b"/generate", 200, 0.1, "")
    assert store._db.total_changes == before
    tally.write()
    assert store._db.total_changes == before + len(TIERS) + 1  # and its caller
    assert kept(store) == [("/generate", 1_800_000_000, 1000)]


async def test_what_could_not_be_written_is_written_later(
    store: Store, fleet: Fleet, clock: Clock
) -> None:
    tally = Tally(store, clock)
    count = tally.of(fleet)
    store._db.execute("PRAGMA query_only = ON")
    count(b"/generate", 200, 0.1, "")
    tally.write()
    count(b"/generate", 200, 0.1, "")
    tally.write()
    store._db.execute("PRAGMA query_only = OFF")
    tally.close()
    for tier in TIERS:
        assert [number for _, _, number in kept(store, tier.step)] == [2]
    assert store.select(Caller) == [Caller("o", "a", "", 2, NOW, NOW)]


async def test_callers_are_told_before_and_after_they_are_written(
    store: Store, fleet: Fleet, clock: Clock
) -> None:
    tally = Tally(store, clock)
    count = tally.of(fleet)
    assert tally.callers(fleet) == []
    for user, at in (("bob", 1.0), ("", 2.0), ("ada", 3.0), ("bob", 4.0)):
        clock.now = NOW + at
        count(b"/generate", 500, 0.1, user)
        if at == 2.0:
            tally.write()
    told = [
        Caller("o", "a", "bob", 2, NOW + 1, NOW + 4),
        Caller("o", "a", "ada", 1, NOW + 3, NOW + 3),
        Caller("o", "a", "", 1, NOW + 2, NOW + 2),
    ]
    for _ in range(2):
        assert tally.callers(fleet) == told
        tally.write()
    assert Tally(store, clock).callers(fleet) == told


async def test_a_caller_of_a_wrong_time_is_told_of_the_right_one_later(
    store: Store, fleet: Fleet, clock: Clock
) -> None:
    tally = Tally(store, clock)
    count = tally.of(fleet)
    for clock.now in (4e9, NOW, NOW + 1):
        count(b"/generate", 200, 0.1, "bob")
        tally.write()
    assert tally.callers(fleet) == [Caller("o", "a", "bob", 3, NOW, NOW + 1)]


async def test_an_app_that_was_deleted_leaves_nothing(
    store: Store, fleet: Fleet, clock: Clock
) -> None:
    tally = Tally(store, clock)
    count = tally.of(fleet)
    count(b"/generate", 200, 0.1, "")
    tally.write()
    count(b"/generate", 200, 0.1, "")
    with store.transaction():
        store.delete_app("o", "a")
    fleet.retire()
    count(b"/generate", 200, 0.1, "")  # its last runner still drains
    tally.close()
    assert [kept(store, tier.step) for tier in TIERS] == [[]] * len(TIERS)
    assert store.select(Caller) == []


async def test_each_tier_forgets_what_is_old(store: Store, fleet: Fleet, clock: Clock) -> None:
    tally = Tally(store, clock)
    count = tally.of(fleet)
    ages = [0, 1800, 3 * 3600, 3 * 86400, 20 * 86400, 40 * 86400]
    for age in ages:
        clock.now = NOW - age
        count(b"/generate", 200, 0.1, "")
        tally.write()
    tally.prune(NOW, NOW)
    assert [len(kept(store, tier.step)) for tier in TIERS] == [2, 3, 4, 5]


@pytest.mark.parametrize("wrong", [0.0, NOW - 100 * 86400, NOW + 100 * 86400, 4e9])
async def test_a_clock_that_is_wrong_for_a_while_takes_nothing_away(
    store: Store, fleet: Fleet, clock: Clock, wrong: float
) -> None:
    tally = Tally(store, clock)
    count = tally.of(fleet)
    count(b"/generate", 200, 0.1, "")
    clock.now = wrong
    count(b"/generate", 200, 0.1, "")  # goes to the time at which it was begun to count
    tally.write()
    assert kept(store) == [("/generate", 1_800_000_000, 2)]
    count(b"/generate", 200, 0.1, "")
    tally.write()
    tally.prune(wrong, NOW)
    assert ("/generate", 1_800_000_000, 2) in kept(store)
    tally.prune(NOW, NOW)  # the clock is right again: what was counted nowhere near goes
    assert kept(store) == [("/generate", 1_800_000_000, 2)]
    assert AHEAD < 100 * 86400


times = st.floats(0, 4e9)
events = st.lists(st.tuples(times, paths, st.integers(0, 999), st.floats(-1e9, 1e9)), max_size=30)


@given(events)
@settings(max_examples=30, deadline=None)
def test_no_clock_and_no_caller_breaks_the_tally(
    events: list[tuple[float, bytes, int, float]],
) -> None:
    async def tallied(store: Store) -> None:
        clock, fleet = Clock(), fleet_of(0)
        store.put(App("o", "a", "v1", "a test"))
        tally = Tally(store, clock)
        count = tally.of(fleet)
        for clock.now, path, status, seconds in events:
            count(path, status, seconds, f"user{status % 3}")
            if status % 2:
                tally.write()
        tally.close()

    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "store.db")
        asyncio.run(tallied(store))
        for tier in TIERS:
            assert sum(number for _, _, number in kept(store, tier.step)) == len(events)
        assert sum(caller.requests for caller in store.select(Caller)) == len(events)
        store.close()


# --- through HTTP ---------------------------------------------------------------------------
PAINTS = """
import fal_notebook as fal
from fastapi import HTTPException
class Paints(fal.App):
    @fal.endpoint("/paint")
    def paint(self, n: int = 0) -> int:
        if n:
            raise HTTPException(n, "as asked")
        return n
    @fal.endpoint("/draw/{what}")
    def draw(self, what: str) -> str:
        return what
"""


@pytest.fixture(scope="module")
def paints(gateway: GatewayInfo) -> Iterator[Handle]:
    """An app of two endpoints that has answered requests of all kinds."""
    with notebook():
        app = fal.deploy(define(PAINTS)["Paints"], wait=True, auth="public", min_concurrency=1)
        url = run_url(gateway, app)
        for path, n in (("/paint", 0), ("/paint", 0), ("/paint", 503), ("/paint", 418)):
            httpx.post(url + path, json={"n": n})
        for number in range(3):
            httpx.post(f"{url}/draw/{number}", json={})
            httpx.post(f"{url}/try/{number}", json={})
        yield app
        app.delete()


def requests_of(told: dict[str, Any]) -> dict[str, int]:
    return {each["endpoint"]: each["requests"] for each in told["endpoints"]}


def test_each_endpoint_has_its_requests_errors_and_latencies(paints: Handle) -> None:
    told = paints.stats()
    assert requests_of(told) == {OTHER: 3, "/draw/{what}": 3, "/paint": 4}
    other, draw, paint = told["endpoints"]
    assert paint["errors"] == {"4xx": 1, "5xx": 1}
    assert other["errors"] == {"4xx": 3, "5xx": 0}
    assert draw["errors"] == {"4xx": 0, "5xx": 0}
    assert 0 < paint["p50"] <= paint["p95"] <= paint["p99"]
    assert (told["requests"], told["errors"]) == (10, {"4xx": 4, "5xx": 1})
    assert told["step"] == TIERS[0].step


def test_points_are_those_of_the_app_or_of_one_endpoint(paints: Handle) -> None:
    for endpoint, requests in (("", 10), ("/paint", 4), ("/draw/{what}", 3), ("/x", 0)):
        told = paints.stats(endpoint=endpoint)
        assert told["requests"] == requests
        assert sum(point["requests"] for point in told["points"]) == requests
        assert len(told["endpoints"]) == (1 if requests else 0) or not endpoint
        times = [point["at"] for point in told["points"]]
        assert times == sorted(set(times))
        assert all(told["since"] <= at < told["until"] for at in times)


def test_all_resolutions_tell_the_same(paints: Handle) -> None:
    for tier in TIERS:
        told = paints.stats(tier.kept, step=2 * tier.step)
        assert requests_of(told) == requests_of(paints.stats())
        assert told["step"] == 2 * tier.step
        assert all(point["at"] % told["step"] == 0 for point in told["points"])


def test_the_route_takes_times_and_refuses_what_is_none(
    gateway: GatewayInfo, paints: Handle
) -> None:
    path = "/api/apps/tester/paints/history"
    with control(gateway) as client:
        long_ago = {"since": time.time() - 7200, "until": time.time() - 3600}
        told = client.get(path, params=long_ago).json()
        assert (told["requests"], told["p50"], told["endpoints"]) == (0, None, [])
        for query in ("since=5&until=5", "since=nan", "until=x", "step=0", "step=inf", "since=-1"):
            answer = client.get(f"{path}?{query}")
            assert (answer.status_code, query) == (422, query)
        assert client.get(f"{path}?since=0&step=1e11").json()["requests"] == 10
        assert client.get("/api/apps/tester/nobody/history").status_code == 404


def run(*words: str) -> str:
    return str(cli.run(["stats", *words], "fal-notebook"))


def test_the_command_shows_a_row_per_endpoint_and_plots(paints: Handle) -> None:
    lines = run("paints").splitlines()
    assert lines[0].split() == ["endpoint", "requests", "4xx", "5xx", "p50", "p95", "p99"]
    rows = {line.split()[0]: line.split()[1:4] for line in lines[1:5]}
    assert rows == {
        OTHER: ["3", "3", "0"],
        "/draw/{what}": ["3", "0", "0"],
        "/paint": ["4", "1", "1"],
        "all": ["10", "4", "1"],
    }
    assert "█" in lines[6]
    assert [line.split()[0] for line in lines[6:]] == ["requests", "errors", "p95", "since"]
    assert lines[-1].endswith("a column is 1 min")
    for since, column in {"24h": "30 min", "7d": "3 h", "30d": "12 h"}.items():
        text = run("paints", "--since", since)
        assert text.splitlines()[1:5] == lines[1:5]
        assert text.endswith(f"a column is {column}")
    assert "errors" not in run("paints", "--endpoint", "/draw/{what}")
    assert "/paint" not in run("paints", "--endpoint", "/draw/{what}")
    with pytest.raises(NotFoundError, match=r"no request of /x .* paints answered .other., /d"):
        run("paints", "--endpoint", "/x")
    assert "<td" in stats_view.of(paints)._repr_html_()


def test_an_app_that_was_never_asked_says_so(gateway: GatewayInfo) -> None:
    with deployed("def unasked() -> int:\n    return 1\n") as handle:
        assert run(handle.name) == "no request of unasked was answered in the last 1h"
        assert stats_view.of(handle)._repr_html_().startswith("<div>no request")


def test_history_outlives_its_gateway_and_goes_with_the_app(state: Path) -> None:
    first = discovery.ensure(state)
    deploy(first, min_concurrency=1)

    def told(info: GatewayInfo) -> dict[str, int]:
        with control(info) as client:
            answer = client.get("/api/apps/tester/who/history").json()
        assert answer["requests"] == sum(requests_of(answer).values())
        return requests_of(answer)

    def callers(info: GatewayInfo) -> list[tuple[str, int]]:
        with control(info) as client:
            answer = client.get("/api/apps/tester/who").json()["callers"]
        return [(caller["user"], caller["requests"]) for caller in answer]

    def rows() -> int:
        with contextlib.closing(sqlite3.connect(state / "store.db")) as store:
            found = store.execute("SELECT SUM(s1 + s2 + s3 + s4 + s5) FROM history")
            return int(found.fetchone()[0] or 0)

    for _ in range(2):
        assert httpx.post(f"{first.url}/run/tester/who", json={}).status_code == 200
    asked = httpx.post(f"{first.url}/queue/tester/who", json={}).json()
    eventually(lambda: httpx.get(asked["status_url"]).json()["status"] == "COMPLETED")
    assert httpx.post(f"{first.url}/run/tester/who/x", json={}).status_code == 404
    eventually(lambda: rows() == 4 * len(TIERS))  # nobody has asked, nobody has stopped it
    end(first, state, signal.SIGKILL)
    second = discovery.ensure(state)
    assert told(second) == {"/": 3, OTHER: 1}
    assert callers(second) == [("", 4)]
    with control(second) as client:
        assert client.post("/run/tester/who", json={}).status_code == 200
    stop(second, state, keep_runners=True)  # at once: what was not written yet is written then
    third = discovery.ensure(state)
    assert told(third) == {"/": 4, OTHER: 1}
    assert callers(third) == [("tester", 1), ("", 4)]
    with control(third) as client:
        client.delete("/api/apps/tester/who")
    assert rows() == 0
    deploy(third)
    assert told(third) == {}
    assert callers(third) == []


TRIES = """
from fastapi import HTTPException
def tries() -> int:
    with open("tried", "a+") as file:
        file.write("x")
        times = file.tell()
    if times < 3:
        raise HTTPException(429, "again", headers={"x-fal-needs-retry": "1"})
    return times
"""


def test_a_queued_request_that_is_tried_again_counts_once(gateway: GatewayInfo) -> None:
    with deployed(TRIES, max_concurrency=1, serve=True, auth="public") as tries:
        asked = httpx.post(f"{gateway.url}/queue/tester/tries", json={}).json()
        eventually(lambda: httpx.get(asked["status_url"]).json()["status"] == "COMPLETED")
        assert httpx.get(asked["response_url"]).json() == 3
        told = tries.stats()
        assert (told["requests"], told["errors"]) == (1, {"4xx": 0, "5xx": 0})
        assert requests_of(told) == {"/": 1}


RAISES = """
from collections.abc import Iterator
from fastapi import HTTPException
import fal_notebook as fal
class Raises(fal.App):
    @fal.endpoint("/call")
    def call(self, how: str) -> str:
        if how == "bug":
            raise ValueError(how)
        if how == "refuse":
            raise HTTPException(418, how)
        return how
    @fal.endpoint("/parts")
    def parts(self) -> Iterator[int]:
        yield 1
        raise ValueError("later")
"""


def test_a_call_from_python_counts_by_what_was_raised(gateway: GatewayInfo) -> None:
    with notebook():
        app: Any = fal.deploy(define(RAISES)["Raises"], wait=True, min_concurrency=1)
        for call in (app.call, lambda how: app.call.submit(how).result()):
            assert call("well") == "well"
            for how in ("bug", "refuse"):
                with pytest.raises(Exception, match=how):
                    call(how)
        with pytest.raises(ValueError, match="later"):
            list(app.parts.submit().result())
        told = app.stats()
        assert requests_of(told) == {"/call": 6, "/parts": 1}
        assert [each["errors"] for each in told["endpoints"]] == [
            {"4xx": 2, "5xx": 2},
            {"4xx": 0, "5xx": 1},
        ]
        app.delete()
