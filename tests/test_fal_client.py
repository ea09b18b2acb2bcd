"""The unmodified Python client of fal, pointed at the gateway: queue, logs, cancel, webhooks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import fal_client
import fal_client.client
import pytest
from fal_client import AsyncClient, SyncClient
from serving import control, deployed

from fal_notebook.discovery import GatewayInfo

TALK = """
import time
def talk(word: str, seconds: float = 0) -> dict:
    print("saying", word)
    time.sleep(seconds)
    if word == "no":
        raise ValueError(word)
    return {"word": word}
"""


@pytest.fixture
def key(gateway: GatewayInfo, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A key, with the client's addresses turned to the gateway."""
    monkeypatch.setattr(fal_client.client, "QUEUE_URL_FORMAT", f"{gateway.url}/queue/")
    monkeypatch.setattr(fal_client.client, "RUN_URL_FORMAT", f"{gateway.url}/run/")
    with control(gateway) as api:
        made = api.post("/api/keys").json()
        yield made["key"]
        api.delete(f"/api/keys/{made['id']}")


@pytest.fixture
def client(key: str) -> Iterator[SyncClient]:
    client = SyncClient(key=key)
    yield client
    client._client.close()  # it has no close of its own


def test_submit_status_events_and_result(client) -> None:
    with deployed(TALK, serve=True):
        request = client.submit("tester/talk", {"word": "hi", "seconds": 0.3})
        events = list(request.iter_events(with_logs=True))
        assert isinstance(events[-1], fal_client.Completed)
        assert [line["message"] for line in events[-1].logs or ()] == ["saying hi"]
        assert events[-1].metrics["inference_time"] >= 0.3
        assert request.get() == {"word": "hi"}
        assert client.result("tester/talk", request.request_id) == {"word": "hi"}
        assert isinstance(client.status("tester/talk", request.request_id), fal_client.Completed)


def test_subscribe_tells_logs_and_run_answers(client) -> None:
    told = []
    with deployed(TALK, serve=True):
        result = client.subscribe(
            "tester/talk",
            {"word": "hi", "seconds": 0.5},
            with_logs=True,
            on_queue_update=told.append,
            priority="low",
            start_timeout=60,
        )
        assert result == client.run("tester/talk", {"word": "hi"}) == {"word": "hi"}
    lines = [line["message"] for update in told for line in getattr(update, "logs", None) or ()]
    assert "saying hi" in lines


def test_positions_and_cancel(client) -> None:
    with deployed(TALK, serve=True, max_concurrency=1):
        first = client.submit("tester/talk", {"word": "first", "seconds": 1.5})
        while not isinstance(first.status(), fal_client.InProgress):
            time.sleep(0.02)
        second = client.submit("tester/talk", {"word": "second"})
        third = client.submit("tester/talk", {"word": "third"})
        assert third.status() == fal_client.Queued(position=1)
        second.cancel()
        with pytest.raises(fal_client.FalClientHTTPError) as caught:
            second.get()
        assert caught.value.status_code == 499
        assert third.get() == {"word": "third"}
        with pytest.raises(fal_client.FalClientHTTPError, match="ALREADY_COMPLETED"):
            client.cancel("tester/talk", first.request_id)


def test_a_failure_and_wrong_input_have_the_apps_own_status(client) -> None:
    with deployed(TALK, serve=True):
        for arguments, status in (({"word": "no"}, 500), ({"wort": "hi"}, 422)):
            with pytest.raises(fal_client.FalClientHTTPError) as caught:
                client.submit("tester/talk", arguments).get()
            assert caught.value.status_code == status


def test_a_webhook_is_accepted_and_a_private_one_refused(client) -> None:
    with deployed(TALK, serve=True):
        hook = "https://hooks.invalid/done"  # a name that does not resolve: nothing is sent
        assert client.submit("tester/talk", {"word": "hi"}, webhook_url=hook).get()
        with pytest.raises(fal_client.FalClientHTTPError) as caught:
            client.submit("tester/talk", {"word": "hi"}, webhook_url="http://127.0.0.1:1/")
        assert caught.value.status_code == 422


def test_the_async_client_does_the_same(key) -> None:
    async def use() -> object:
        client = AsyncClient(key=key)
        request = await client.submit("tester/talk", {"word": "hi"})
        async for event in request.iter_events(with_logs=True):
            assert event
        try:
            return await request.get()
        finally:
            await (await client._client).aclose()

    with deployed(TALK, serve=True):
        assert asyncio.run(use()) == {"word": "hi"}


def test_a_generator_is_streamed(client) -> None:
    source = "def count(n: int):\n    for i in range(n):\n        yield {'i': i}"
    with deployed(source, serve=True):
        values = list(client.stream("tester/count", {"n": 3}, path=""))
        assert values == [{"i": 0}, {"i": 1}, {"i": 2}]
