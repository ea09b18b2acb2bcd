"""Followers of events: replay, live, filtered, dropped when too slow, freed when they leave."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from serving import control, defined, deployed, run_url

from fal_notebook import deploying
from fal_notebook.discovery import GatewayInfo
from fal_notebook.gateway import events as module
from fal_notebook.gateway.events import Events
from fal_notebook.gateway.store import Store


async def _next(stream: AsyncIterator[bytes]) -> dict[str, Any]:
    text = (await asyncio.wait_for(stream.__anext__(), 5)).decode()
    return dict(json.loads(text.split("data: ", 1)[1]))


async def test_the_past_is_replayed_and_the_present_follows_without_a_gap(store: Store) -> None:
    events = Events(store)
    for number in range(3):
        store.emit("runner", "me", "a", {"n": number})
    stream = events.follow(1, "me", "a")
    assert (await _next(stream))["data"] == {"n": 1}
    store.emit("runner", "me", "a", {"n": 3})  # while the past is still being read
    store.emit("runner", "me", "b", {"n": 4})
    events.sample("me", "a", {"at": 1.0, "runners": 2})
    assert [(await _next(stream))["data"].get("n") for _ in range(3)] == [2, 3, None]
    events.close()
    with pytest.raises(StopAsyncIteration):
        await _next(stream)


async def test_a_follower_that_is_too_slow_is_dropped(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_BEHIND", 5)
    events = Events(store)
    stream = events.follow(0, "", "")
    store.emit("runner", "me", "a", {})
    await _next(stream)
    for number in range(50):
        events.sample("me", "a", {"at": float(number)})
    assert not events._queues
    assert [message async for message in stream][-1].startswith(b"event: sample")


async def test_a_follower_that_leaves_is_forgotten(store: Store) -> None:
    events = Events(store)
    store.emit("runner", "me", "a", {})
    stream = events.follow(0, "", "")
    await _next(stream)
    assert len(events._queues) == 1
    await stream.aclose()
    assert not events._queues


async def test_a_quiet_stream_stays_alive(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEEPALIVE", 0.01)
    stream = Events(store).follow(0, "", "")
    assert await stream.__anext__() == b": keep-alive\n\n"
    await stream.aclose()


def test_a_deploy_and_its_load_are_told_over_http(gateway: GatewayInfo) -> None:
    with control(gateway) as client, deployed("def told() -> int:\n    return 1\n") as handle:
        query: dict[str, Any] = {"owner": "tester", "app": "told", "since": 0}
        with client.stream("GET", "/api/events", params=query) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            events = (json.loads(x[6:]) for x in answer.iter_lines() if x.startswith("data: "))
            seen = []
            for event in events:
                seen.append(event)
                if event["kind"] == "deploy" and event["data"]["step"] == "active":
                    break
            owner = {"authorization": f"Bearer {gateway.token}"}
            for _ in range(30):
                httpx.post(run_url(gateway, handle), json={}, headers=owner)
            samples = []
            for event in events:
                if event["kind"] == "sample":
                    samples.append(event["data"]["at"])
                if len(samples) == 3:
                    break
        again = {"last-event-id": str(seen[0]["seq"])}
        with client.stream("GET", "/api/events", params=query, headers=again) as answer:
            first = next(x for x in answer.iter_lines() if x.startswith("data: "))
            assert json.loads(first[6:]) == seen[1]
        assert {event["app"] for event in seen} == {"told"}
        assert [event["seq"] for event in seen] == sorted({event["seq"] for event in seen})
        states = [e["data"]["state"] for e in seen if e["kind"] == "runner"]
        assert states[:3] == ["PENDING", "SETUP", "IDLE"]
        assert all(b - a > 0.09 for a, b in itertools.pairwise(samples))


def test_what_a_runner_prints_while_it_starts_is_told(gateway: GatewayInfo) -> None:
    source = """
import time
def load():
    for number in range(4):
        print("weights", number)
        time.sleep(0.7)
def loads(): return 1
"""
    loads = defined(source)
    handle = deploying.deploy(loads, setup_function=loads.__globals__["load"])
    query: dict[str, Any] = {"owner": "tester", "app": "loads", "since": 0}
    with control(gateway) as client, client.stream("GET", "/api/events", params=query) as answer:
        lines = (json.loads(line[6:]) for line in answer.iter_lines() if line[:6] == "data: ")
        details = (event["data"] for event in lines if event["kind"] == "detail")
        told = next(data for data in details if len(data["log"]) > 1)
    assert told["log"][:2] == ["weights 0", "weights 1"]
    assert handle() == 1
    handle.delete()
