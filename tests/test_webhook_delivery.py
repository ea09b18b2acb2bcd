"""When webhooks are sent and tried again, and how many are on their way."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest
from inside import until
from webhook_target import OK, REFUSED, Target, silence, verify

from fal_notebook.exceptions import StoreError, WebhookDeliveryError
from fal_notebook.gateway.queue.journal import Journal
from fal_notebook.gateway.store import Store
from fal_notebook.gateway.vault import Vault
from fal_notebook.gateway.webhooks import client as client_module
from fal_notebook.gateway.webhooks import delivery as delivery_module
from fal_notebook.gateway.webhooks import flights, table
from fal_notebook.gateway.webhooks.delivery import Deliverer, next_attempt
from fal_notebook.gateway.webhooks.sender import Sender
from fal_notebook.gateway.webhooks.signing import Signer
from fal_notebook.gateway.webhooks.table import Delivery, DeliveryTable
from fal_notebook.gateway.webhooks.targets import parse

T = TypeVar("T")


def test_ten_retries_are_spread_over_two_hours() -> None:
    at, gaps = 1000.0, []
    for attempt in range(1, 11):
        following = next_attempt(attempt, at)
        assert following is not None
        gaps.append(following - at)
        at = following
    assert next_attempt(11, at) is None
    assert at == pytest.approx(1000 + 2 * 3600)
    assert gaps == sorted(gaps)
    assert gaps[0] < 10


class FullAtTimes(Journal):
    """The queue's journal, on a disk that tests can fill."""

    full = False

    async def write(self, change: Callable[[sqlite3.Connection], T]) -> T:
        if self.full:
            raise StoreError("the disk is full")
        return await super().write(change)


def opened(tmp_path: Path) -> FullAtTimes:
    return FullAtTimes(tmp_path / "queue.db", [table.SCHEMA])


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[FullAtTimes]:
    journal = opened(tmp_path)
    yield journal
    journal.close()


class Clock:
    """Time that only tests move."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@contextlib.asynccontextmanager
async def delivering(
    journal: FullAtTimes, send: Callable[[Delivery], Awaitable[None]], clock: Callable[[], float]
) -> AsyncIterator[Deliverer]:
    """A deliverer at work."""
    deliverer = Deliverer(DeliveryTable(journal), send, clock)
    work = asyncio.create_task(deliverer.run())
    try:
        yield deliverer
    finally:
        work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work


def lane(url: str) -> str:
    return parse(url).lane


async def add(
    journal: FullAtTimes,
    *urls: str,
    start: int = 0,
    at: float = 1000.0,
    lane_of: Callable[[str], str] = lane,
) -> None:
    def insert(connection: sqlite3.Connection) -> None:
        for number, url in enumerate(urls, start):
            table.add(connection, f"r{number}", "me", url, lane_of(url), at)

    await journal.write(insert)


def rows(journal: FullAtTimes) -> list[sqlite3.Row]:
    return journal.read("SELECT * FROM webhooks ORDER BY request_id")


@pytest.fixture
def sender(store: Store, tmp_path: Path) -> Sender:
    def find(request_id: str) -> Callable[[], Awaitable[bytes]] | None:
        async def make() -> bytes:
            return json.dumps({"request_id": request_id}).encode()

        return None if request_id == "r9" else make

    return Sender("127.0.0.1", Signer(store, Vault(tmp_path)), find)


async def test_a_delivery_arrives_signed_and_is_done(
    journal: FullAtTimes, sender: Sender, store: Store, tmp_path: Path
) -> None:
    async with Target(OK) as target, delivering(journal, sender, Clock()) as deliverer:
        await add(journal, target.url)
        deliverer.notify()
        await until(lambda: not rows(journal))
    ((line, headers, body),) = target.requests
    assert line == "POST /hook?a=1 HTTP/1.1"
    assert headers["content-type"] == "application/json"
    assert verify(headers, body, Signer(store, Vault(tmp_path)).jwks())
    assert headers["x-fal-webhook-user-id"] == "me"


async def test_nothing_is_sent_when_the_result_is_gone(
    journal: FullAtTimes, sender: Sender
) -> None:
    async with Target(OK) as target, delivering(journal, sender, Clock()) as deliverer:
        await add(journal, target.url, start=9)
        deliverer.notify()
        await until(lambda: not rows(journal))
    assert target.connections == 0


async def test_a_request_is_added_once(journal: FullAtTimes) -> None:
    await add(journal, "http://a/")
    await add(journal, "http://b/")
    assert [row["url"] for row in rows(journal)] == ["http://a/"]


async def test_a_refusal_is_tried_ten_times_again_and_then_given_up(
    journal: FullAtTimes, sender: Sender, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    async with Target(REFUSED) as target, delivering(journal, sender, clock) as deliverer:
        await add(journal, target.url)
        for attempt in range(1, 11):
            deliverer.notify()
            await until(lambda n=attempt: rows(journal)[0]["attempt"] == n)  # type: ignore[misc]
            (row,) = rows(journal)
            assert "answered 503" in row["error"]
            assert row["next_at"] == next_attempt(attempt, clock.now)
            clock.now = row["next_at"]
        deliverer.notify()
        await until(lambda: not rows(journal))
    assert len(target.requests) == 11
    assert f"request r0 to http://127.0.0.1:{target.port} is given up" in caplog.text
    assert "a=1" not in caplog.text


async def test_it_is_not_tried_again_before_its_time(journal: FullAtTimes, sender: Sender) -> None:
    clock = Clock()
    async with Target(REFUSED) as target, delivering(journal, sender, clock) as deliverer:
        await add(journal, target.url)
        deliverer.notify()
        await until(lambda: rows(journal)[0]["attempt"] == 1)
        clock.now += 5
        deliverer.notify()
        await asyncio.sleep(0.05)
        assert len(target.requests) == 1


async def test_after_a_long_sleep_retries_keep_their_distance(
    journal: FullAtTimes, sender: Sender
) -> None:
    """A laptop that wakes without its network must not spend all retries at once."""
    clock = Clock()
    async with Target(REFUSED) as target, delivering(journal, sender, clock) as deliverer:
        await add(journal, target.url)
        deliverer.notify()
        await until(lambda: rows(journal)[0]["attempt"] == 1)
        clock.now += 5 * 3600
        deliverer.notify()
        await until(lambda: rows(journal)[0]["attempt"] == 2)
        assert rows(journal)[0]["next_at"] > clock.now
    assert len(target.requests) == 2


async def test_what_is_due_is_sent_without_being_told(journal: FullAtTimes, sender: Sender) -> None:
    async with Target(OK) as target:
        await journal.write(
            lambda connection: table.add(
                connection, "r", "me", target.url, lane(target.url), time.time() + 0.1
            )
        )
        async with delivering(journal, sender, time.time):
            await until(lambda: not rows(journal))


async def test_deliveries_survive_a_restart_of_the_gateway(
    journal: FullAtTimes, sender: Sender, tmp_path: Path
) -> None:
    async with Target(silence) as target:
        await add(journal, target.url)
        async with delivering(journal, sender, Clock()):
            await until(lambda: target.requests)  # ended while it was on its way
        target.answer = OK
        again = opened(tmp_path)
        async with delivering(again, sender, Clock()):
            await until(lambda: not rows(again))
        again.close()
    assert len(target.requests) == 2


class Sent:
    """Notes deliveries; those whose URL holds "dead" never end."""

    def __init__(self) -> None:
        self.ended: list[str] = []
        self.flying: list[str] = []

    async def __call__(self, delivery: Delivery) -> None:
        self.flying.append(delivery.url)
        try:
            if "dead" in delivery.url:
                await asyncio.Event().wait()
        finally:
            self.flying.remove(delivery.url)
        self.ended.append(delivery.url)


async def test_a_dead_target_holds_nothing(journal: FullAtTimes) -> None:
    sent = Sent()
    dead = ["http://dead/"] * 300
    await add(journal, *dead, *(f"http://live{n}/" for n in range(40)))
    async with delivering(journal, sent, Clock()):
        await until(lambda: len(sent.ended) == 40)
        assert sent.flying == ["http://dead/"] * flights.PER_TARGET


async def test_a_dead_port_holds_no_other_port_of_its_host(journal: FullAtTimes) -> None:
    sent = Sent()
    await add(journal, *["http://host:1/dead"] * 10, "http://host:2/", "https://host/")
    async with delivering(journal, sent, Clock()):
        await until(lambda: sorted(sent.ended) == ["http://host:2/", "https://host/"])


async def test_a_path_that_hangs_holds_no_other_path_of_its_server(journal: FullAtTimes) -> None:
    sent = Sent()
    await add(journal, *(f"http://host/dead?n={n}" for n in range(9)), "http://host/after")
    async with delivering(journal, sent, Clock()):
        await until(lambda: sent.ended == ["http://host/after"])
        assert len(sent.flying) == flights.PER_TARGET


async def test_many_dead_targets_do_not_hold_one_that_nobody_called_before(
    journal: FullAtTimes,
) -> None:
    sent = Sent()
    await add(journal, *(f"http://dead{n}/" for n in range(400)), at=900.0)
    async with delivering(journal, sent, Clock()) as deliverer:
        await until(lambda: len(sent.flying) >= 60)
        await add(journal, "http://live/", start=1000)
        deliverer.notify()
        await until(lambda: sent.ended)


def test_what_is_slow_leaves_places_until_its_end() -> None:
    """For 15 s a second's starts find room, however many never answer."""
    flying = flights.Flights()
    many = iter([Delivery(f"{n}", "", "", f"host{n}#0", 0, 0, "") for n in range(3000)])
    for _ in range(15):
        started = []
        while flying.left_to_unproven > 0:
            started.append(next(many))
            flying.start(started[-1])
        assert started
        for delivery in started:
            flying.slow(delivery)


async def test_a_target_gets_four_at_once(journal: FullAtTimes) -> None:
    sent = Sent()
    await add(journal, *["http://host/dead"] * 10)
    async with delivering(journal, sent, Clock()):
        await until(lambda: len(sent.flying) == 4)
        await asyncio.sleep(0.02)
        assert len(sent.flying) == 4


async def test_targets_that_answer_have_room_however_many_are_dead(
    journal: FullAtTimes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flights, "FRESH", 0.0)
    monkeypatch.setattr(flights, "AT_MOST", 256)
    sent = Sent()
    await add(journal, *(f"http://host{n}/" for n in range(40)))
    async with delivering(journal, sent, Clock()) as deliverer:
        await until(lambda: len(sent.ended) == 40)
        await add(journal, *(f"http://dead{n}/" for n in range(500)), start=100)
        deliverer.notify()
        await until(lambda: len(sent.flying) == 192)
        await add(journal, *(f"http://host{n}/" for n in range(40)), start=1000)
        deliverer.notify()
        await until(lambda: len(sent.ended) == 80)
        await add(journal, *(f"http://host{n % 40}/?dead" for n in range(160)), start=2000)
        deliverer.notify()
        await until(lambda: len(sent.flying) == 256)
        await asyncio.sleep(0.02)
        assert len(sent.flying) == 256


async def test_one_address_has_few_places_however_many_paths_it_has(
    journal: FullAtTimes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flights, "FRESH", 0.0)
    sent = Sent()
    await add(journal, *(f"http://dead/job/{n}" for n in range(400)), at=900.0)
    async with delivering(journal, sent, Clock()) as deliverer:
        await until(lambda: len(sent.flying) == flights.PER_ADDRESS)
        await add(journal, "http://live/", start=1000)
        deliverer.notify()
        await until(lambda: sent.ended)
        assert len(sent.flying) == flights.PER_ADDRESS


async def test_one_that_is_told_the_first_time_comes_before_retries(journal: FullAtTimes) -> None:
    deliveries = DeliveryTable(journal)
    await add(journal, "http://a/", "http://b/")
    await deliveries.reschedule("r0", 1, 900.0, "it failed")
    assert [d.request_id for d in deliveries.due(1000.0, 9)] == ["r1", "r0"]


async def test_of_several_targets_the_one_told_last_comes_first(journal: FullAtTimes) -> None:
    """It has not shown yet that it is dead; those that wait for long have neighbours that are."""
    await add(journal, "http://a/", at=900.0)
    await add(journal, "http://a/", "http://b/", start=1)
    assert [d.request_id for d in DeliveryTable(journal).due(1000.0, 9)] == ["r2", "r0"]


@pytest.mark.parametrize(
    ("files", "room"), [(256, 64), (20_000, 1024), (resource.RLIM_INFINITY, 1024)]
)
def test_few_are_on_their_way_where_few_files_may_be_open(
    monkeypatch: pytest.MonkeyPatch, files: int, room: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (files, files))
    assert flights.room() == room


async def test_a_mistake_of_the_senders_is_one_failed_attempt(
    journal: FullAtTimes, caplog: pytest.LogCaptureFixture
) -> None:
    async def breaks(delivery: Delivery) -> None:
        raise ZeroDivisionError("a bug")

    await add(journal, "http://a/")
    async with delivering(journal, breaks, Clock()):
        await until(lambda: rows(journal)[0]["attempt"] == 1)
    assert "ZeroDivisionError" in caplog.text


async def test_a_full_disk_is_waited_for(
    journal: FullAtTimes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery_module, "PAUSE", 0.05)
    sent = Sent()
    await add(journal, "http://live/")
    journal.full = True
    async with delivering(journal, sent, Clock()):
        await until(lambda: sent.ended)
        journal.full = False
        await until(lambda: not rows(journal))
    assert len(sent.ended) < 10


def test_limits_are_those_of_fal() -> None:
    assert (client_module.TIMEOUT, client_module.CONNECT_TIMEOUT) == (15, 5)
    assert (delivery_module.RETRIES, delivery_module.WINDOW) == (10, 7200)


GOOD = "http://host/good"


async def test_a_path_that_took_its_last_one_waits_for_no_other_of_its_host(
    journal: FullAtTimes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flights, "FRESH", 0.0)
    sent, many = Sent(), [f"http://host/dead/{n}" for n in range(20_000)]
    many = [*(url for url in many if lane(url) == lane(GOOD)), *many[:100]]
    await add(journal, GOOD)
    async with delivering(journal, sent, Clock()) as deliverer:
        await until(lambda: sent.ended == [GOOD])
        await add(journal, *many, start=10)
        deliverer.notify()
        await until(lambda: sum(lane(url) == lane(GOOD) for url in sent.flying) == 4)
        await until(lambda: len(sent.flying) >= flights.PER_ADDRESS)
        await add(journal, GOOD, start=1000, lane_of=deliverer.lane_of)
        deliverer.notify()
        await until(lambda: sent.ended == [GOOD, GOOD])


async def test_many_paths_that_hang_do_not_hold_a_new_one_of_their_host(
    journal: FullAtTimes,
) -> None:
    sent = Sent()
    await add(journal, *(f"http://host/dead/{n}" for n in range(200)), at=900.0)
    async with delivering(journal, sent, Clock()) as deliverer:
        await until(lambda: len(sent.flying) >= 6)
        await add(journal, GOOD, start=1000)
        deliverer.notify()
        await until(lambda: sent.ended == [GOOD], timeout=5)
        assert len(sent.flying) < flights.PER_ADDRESS


async def test_a_path_that_says_no_at_once_is_tried_again_when_it_is_time(
    journal: FullAtTimes,
) -> None:
    """However many others of its host hang."""
    hanging, says_no, clock = Sent(), [], Clock()

    async def send(delivery: Delivery) -> None:
        if delivery.url != GOOD:
            await hanging(delivery)
        says_no.append(clock.now)
        raise WebhookDeliveryError("500")

    await add(journal, GOOD)
    async with delivering(journal, send, clock) as deliverer:
        await until(lambda: rows(journal)[0]["attempt"] == 1)
        await add(journal, *(f"http://host/dead/{n}" for n in range(200)), start=10)
        deliverer.notify()
        await until(lambda: len(hanging.flying) >= 6)
        clock.now += 10
        deliverer.notify()
        await until(lambda: says_no == [1000.0, 1010.0], timeout=5)


async def test_a_path_that_hangs_shares_a_lane_again(
    journal: FullAtTimes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flights, "FRESH", 0.01)

    async def send(delivery: Delivery) -> None:
        if "fails" in delivery.url:
            await asyncio.sleep(0.1)
            raise WebhookDeliveryError("no")

    clock = Clock()
    async with delivering(journal, send, clock) as deliverer:
        await add(journal, GOOD)
        deliverer.notify()
        await until(lambda: not rows(journal))
        own = deliverer.lane_of(GOOD)
        assert own != lane(GOOD)
        fails = f"{GOOD}?fails"
        await add(journal, fails, fails, lane_of=deliverer.lane_of, at=1001.0)
        assert {row["target"] for row in rows(journal)} == {own}
        clock.now += 1
        deliverer.notify()
        await until(lambda: [row["attempt"] for row in rows(journal)] == [1, 1])
        await until(lambda: {row["target"] for row in rows(journal)} == {lane(GOOD)})
        assert deliverer.lane_of(GOOD) == lane(GOOD)


async def test_few_paths_have_lanes_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flights, "OWN_LANES", 3)
    flying = flights.Flights()
    urls = [f"http://host/{n}" for n in range(5)]
    given_up = [flying.note(Delivery("", "", u, lane(u), 0, 0, ""), True) for u in urls]
    own = [parse(url).own_lane for url in urls]
    assert given_up == [[], [], [], own[:1], own[1:2]]
    assert [flying.lane_of(url) for url in urls] == [lane(urls[0]), lane(urls[1]), *own[2:]]
    assert flying.proven.issuperset(own[2:])
    assert not flying.proven.intersection(own[:2])


async def test_what_a_gateway_knew_of_a_path_ends_with_it(journal: FullAtTimes) -> None:
    await add(journal, GOOD, lane_of=lambda url: parse(url).own_lane, at=9e9)
    async with delivering(journal, Sent(), Clock()):
        await until(lambda: rows(journal)[0]["target"] == lane(GOOD))
