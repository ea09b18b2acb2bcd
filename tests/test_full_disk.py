"""A disk without room under a real gateway: what would write is 507, all that reads goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from gateway_processes import deploy, stop
from serving import control, eventually, fill

from fal_notebook import discovery
from fal_notebook.discovery import GatewayInfo
from fal_notebook.toolkit import kv

WORK = """
import time

def who(x: int = 0, seconds: float = 0) -> int:
    time.sleep(seconds)
    print("line", x)
    return x
"""


@pytest.fixture
def full(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GatewayInfo]:
    """A gateway with an app, a file and a request that is done, whose disk is full by now."""
    monkeypatch.setenv("FAL_NOTEBOOK_STATE", str(small_disk))
    gateway = discovery.ensure(small_disk)
    deploy(gateway, WORK, max_concurrency=1)
    yield gateway
    (small_disk / "filler").unlink(missing_ok=True)
    stop(gateway, small_disk)


def test_what_writes_is_507_and_what_reads_goes_on(full: GatewayInfo, small_disk: Path) -> None:
    queue, run = f"{full.url}/queue/tester/who", f"{full.url}/run/tester/who"
    with control(full) as api:
        done = api.post(queue, json={"x": 7}).json()["response_url"]
        eventually(lambda: api.get(f"{done}/status").status_code == 200)
        file = api.post("/storage/files", content=b"kept").json()["url"]
        large = api.post("/storage/files", content=bytes(300_000)).json()["url"]
        fill(small_disk, leave=0)
        refused(lambda: api.post(queue, json={"x": 1}))  # SQLite has a few pages in reserve
        big = bytes(300_000)
        writes: dict[str, Any] = {
            "queue": api.post(queue, content=b'{"x": 1}' + b" " * 100_000),
            "storage": api.post("/storage/files", content=big),
            "payload": api.put(f"/api/blobs/{'0' * 64}", content=big),
            "key": refused(lambda: api.post("/api/keys")),
        }
        assert {what: answer.status_code for what, answer in writes.items()} == dict.fromkeys(
            writes, 507
        )
        for answer in writes.values():
            assert answer.json()["detail"].startswith(f"no room is left in {small_disk}")
        assert httpx.post(run, json={"x": 3}).json() == 3
        assert api.get(done).json() == 7
        assert api.get(file).content == b"kept"
        assert api.get("/api/apps/tester/who").json()["options"]["max_concurrency"] == 1
        assert "line 7" in str(api.get("/api/apps/tester/who/logs").json())
        assert api.get("/metrics").is_success
        assert api.delete(large).is_success
        assert api.get(large).status_code == 404
        (small_disk / "filler").unlink()
        again = api.post(queue, json={"x": 8}).json()["response_url"]
        eventually(lambda: api.get(f"{again}/status").status_code == 200)
        assert api.get(again).json() == 8


def test_a_cancel_that_cannot_be_recorded_is_507_and_the_request_waits_on(
    full: GatewayInfo, small_disk: Path
) -> None:
    queue = f"{full.url}/queue/tester/who"
    with control(full) as api:
        api.post(queue, json={"seconds": 3}).raise_for_status()
        waiting = [api.post(queue, json={"x": x}).json()["response_url"] for x in range(40)]
        fill(small_disk, leave=0)
        refused(lambda: api.post("/api/keys"))
        told = {url: api.put(f"{url}/cancel").status_code for url in waiting}
        assert set(told.values()) <= {202, 507}  # SQLite has a few pages in reserve
        kept = [url for url, status in told.items() if status == 507]
        assert api.get(f"{kept[0]}/status").json()["status"] == "IN_QUEUE"
        (small_disk / "filler").unlink()
        for url in kept:
            eventually(lambda url=url: api.get(f"{url}/status").status_code == 200)
        assert [api.get(url).json() for url in kept] == [waiting.index(url) for url in kept]


def test_after_a_cancel_that_failed_the_deadline_holds(full: GatewayInfo, small_disk: Path) -> None:
    queue = f"{full.url}/queue/tester/who"
    with control(full) as api:
        api.post(queue, json={"seconds": 6}).raise_for_status()
        late = {"x-fal-request-timeout": "3"}
        waiting = [api.post(queue, json={}, headers=late).json()["response_url"] for _ in range(9)]
        fill(small_disk, leave=0)
        refused(lambda: api.post("/api/keys"))
        told = {url: api.put(f"{url}/cancel").status_code for url in waiting}
        (small_disk / "filler").unlink()
        kept = [url for url, status in told.items() if status == 507]
        for url in kept:
            eventually(lambda url=url: api.get(f"{url}/status").status_code == 200)
        assert {api.get(url).status_code for url in kept} == {504}


def test_stats_know_answers_that_the_disk_has_no_room_for(
    full: GatewayInfo, small_disk: Path
) -> None:
    with control(full) as api:

        def stats(**asked: Any) -> dict[str, Any]:
            told: dict[str, Any] = api.get("/api/apps/tester/who/history", params=asked).json()
            return told

        fill(small_disk, leave=0)
        refused(lambda: api.post("/api/keys"))
        for x in range(20):
            assert api.post("/run/tester/who", json={"x": x}).json() == x
        assert api.post("/run/tester/who", json={"x": "y"}).status_code == 422
        assert stats()["requests"] == 21  # what asks tries to write them, which fails
        assert api.post("/run/tester/who", json={"x": 1}).json() == 1
        found = stats()
        assert (found["requests"], found["errors"]["4xx"]) == (22, 1)
        assert found["endpoints"] == [{"endpoint": "/", **only(found)}]
        assert sum(point["requests"] for point in found["points"]) == 22
        assert stats(endpoint="/")["requests"] == 22
        assert stats(endpoint="/other")["requests"] == 0
        assert stats(until=time.time() - 60)["requests"] == 0
        (small_disk / "filler").unlink()
        assert only(stats()) == only(found)  # written, and not counted twice
        assert only(stats()) == only(found)


def only(told: dict[str, Any]) -> dict[str, Any]:
    return {name: told[name] for name in ("requests", "errors", "p50", "p95", "p99")}


def refused(ask: Callable[[], httpx.Response]) -> httpx.Response:
    """Ask until it is refused."""
    while (answer := ask()).is_success:
        pass
    return answer


def test_a_value_that_has_no_room_leaves_the_one_before(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv, "data_folder", lambda: small_disk)
    store = kv.KVStore("of the test")
    store.set("a", "1")
    fill(small_disk, leave=0)
    with pytest.raises(OSError, match="No space left"):
        store.set("a", "2" * 100_000)
    assert store.get("a") == "1"
    assert len([path for path in (small_disk / ".fal").rglob("*") if path.is_file()]) == 1
