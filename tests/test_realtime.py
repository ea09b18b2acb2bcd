"""`realtime`: fal's own client talks to methods that answer messages."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import fal_client
import fal_client.client
import msgpack
import pytest
from fal_client.client import RealtimeError
from runner_bench import define, notebook
from serving import control
from test_sockets import app_of, closed, in_flight, open_socket

import fal_notebook as fal
from fal_notebook import cli
from fal_notebook.discovery import GatewayInfo
from fal_notebook.exceptions import AppDefinitionError, FalNotebookError

Eventually = Callable[..., Any]

LIVE = """
from __future__ import annotations
import asyncio, datetime, json, os, threading, time
from typing import AsyncIterator, Iterator
import fal_notebook as fal
from pydantic import BaseModel

class Say(BaseModel):
    text: str
    times: int = 1
    def can_batch(self, other, size):
        return other.text != "alone"
class Said(BaseModel):
    text: str
    raw: bytes = b""

class Live(fal.App, max_multiplexing=4, max_concurrency=1):
    def setup(self):
        self.seen, self.go = [], threading.Event()

    @fal.endpoint("/seen")
    def all_seen(self) -> list:
        return self.seen

    @fal.endpoint("/let")
    def let(self, go: bool = True) -> None:
        (self.go.set if go else self.go.clear)()

    @fal.realtime("/realtime")
    async def shout(self, input: Say) -> Said:
        print("shouting", input.text)
        if input.text == "bad":
            raise ValueError("it was bad")
        return Said(text=input.text.upper() * input.times, raw=b"\\x00\\xff")

    @fal.realtime("/thread")
    def shout_in_thread(self, input: Say):
        return {"text": input.text.upper(), "at": datetime.date(2020, 1, 2)}

    @fal.realtime("/parts")
    def parts(self, input: Say) -> Iterator[Said]:
        for n in range(input.times):
            yield Said(text=f"{input.text}{n}")

    @fal.realtime("/unnamed")
    async def unnamed(self, input: Say):
        for n in range(input.times):
            yield {"n": n}

    @fal.realtime("/sum")
    async def total(self, inputs: AsyncIterator[Say]) -> dict:
        texts = []
        async for item in inputs:
            if item.text == "end":
                break
            texts.append(item.text)
        return {"texts": texts}

    @fal.realtime("/both")
    async def both(self, inputs: AsyncIterator[Say]) -> AsyncIterator[Said]:
        async for item in inputs:
            for _ in range(item.times):
                yield Said(text=item.text)
        self.seen.append("both left")

    @fal.realtime("/brief", session_timeout=0.3)
    async def brief(self, input: Say) -> Said:
        return Said(text=input.text)

    @fal.realtime("/newest", buffering=2)
    def newest(self, input: Say) -> Said:
        self.seen.append("newest")
        self.go.wait(20)
        return Said(text=input.text)

    @fal.realtime("/many")
    def many(self, input: Say) -> Said:
        self.seen.append("many")
        self.go.wait(20)
        return Said(text=input.text)

    @fal.realtime("/batch", max_batch_size=3)
    def batch(self, *inputs: Say) -> dict:
        self.go.wait(20)
        return {"texts": [item.text for item in inputs]}

    @fal.realtime("/wrong")
    def wrong(self, input: Say):
        return 7

    @fal.realtime(
        "/json",
        encode_message=lambda value: json.dumps(value),
        decode_message=lambda data: json.loads(data),
    )
    async def as_json(self, input: dict) -> dict:
        return input

    @fal.realtime("/long")
    async def long(self, input: Say) -> Said:
        self.seen.append("begun")
        try:
            await asyncio.sleep(3600)
        finally:
            self.seen.append("ended")
"""

DRAW = {"text": "a", "times": 2}


@pytest.fixture(scope="module")
def live(gateway: GatewayInfo) -> Iterator[Any]:
    with app_of(LIVE, "Live") as handle:
        yield handle


@pytest.fixture
def client(gateway: GatewayInfo, monkeypatch: pytest.MonkeyPatch, live: Any) -> Iterator[Any]:
    """fal's own client, turned to the gateway as `client-env --python` says."""
    url = gateway.url.replace("http", "ws") + "/run/"
    monkeypatch.setattr(fal_client.client, "REALTIME_URL_FORMAT", url)
    with control(gateway) as api:
        made = api.post("/api/keys").json()
        client = fal_client.SyncClient(key=made["key"])
        yield client
        client._client.close()  # it has no close of its own
        api.delete(f"/api/keys/{made['id']}")


def talk(client: Any, path: str, **options: Any) -> Any:
    return client.realtime("tester/live", use_jwt=False, path=path, **options)


def test_each_message_is_answered(client: Any, live: Any, eventually: Eventually) -> None:
    with talk(client, "/realtime") as connection:
        for times in (1, 2, 3):
            connection.send({"text": "a", "times": times})
            assert connection.recv() == {"text": "A" * times, "raw": b"\x00\xff"}
        assert in_flight(live) == 1
    eventually(lambda: in_flight(live) == 0)


def test_the_async_client_talks_too(client: Any) -> None:
    async def main() -> Any:
        key = client.key
        own = fal_client.AsyncClient(key=key)
        async with own.realtime("tester/live", use_jwt=False) as connection:
            await connection.send(DRAW)
            return await connection.recv()

    assert asyncio.run(main())["text"] == "AA"


def test_a_method_may_run_in_a_thread(client: Any) -> None:
    with talk(client, "/thread") as connection:
        connection.send(DRAW)
        assert connection.recv() == {"text": "A", "at": "2020-01-02"}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/parts", [{"text": "a0", "raw": b""}, {"text": "a1", "raw": b""}]),
        ("/unnamed", [{"n": 0}, {"n": 1}]),
    ],
)
def test_a_generator_sends_several_messages(client: Any, path: str, expected: Any) -> None:
    with talk(client, path) as connection:
        connection.send(DRAW)
        assert [connection.recv(), connection.recv()] == expected
        with pytest.raises(RealtimeError, match="TIMEOUT: no inputs, reconnect when needed!"):
            connection.recv()
        assert connection.recv() is None  # it was closed


def test_a_method_may_take_all_messages(client: Any) -> None:
    with talk(client, "/sum") as connection:
        for text in ("a", "b", "end"):
            connection.send({"text": text})
        assert connection.recv() == {"texts": ["a", "b"]}


def test_messages_go_both_ways_at_once(client: Any, live: Any, eventually: Eventually) -> None:
    with talk(client, "/both") as connection:
        connection.send(DRAW)
        assert [connection.recv()["text"] for _ in range(2)] == ["a", "a"]
        connection.send({"text": "b"})
        assert connection.recv()["text"] == "b"
    eventually(lambda: "both left" in live.all_seen())


def test_a_session_without_messages_ends(client: Any) -> None:
    with talk(client, "/brief") as connection:
        connection.send(DRAW)
        assert connection.recv()["text"] == "a"
        with pytest.raises(RealtimeError, match="TIMEOUT"):
            connection.recv()
        assert connection.recv() is None


def test_of_what_waits_the_oldest_is_dropped(
    client: Any, live: Any, eventually: Eventually
) -> None:
    live.let(go=False)
    with talk(client, "/newest") as connection:
        connection.send({"text": "0"})
        eventually(lambda: "newest" in live.all_seen())
        for n in range(1, 10):
            connection.send({"text": str(n)})
        _until_read(connection)
        live.let()
        got = [connection.recv()["text"] for _ in range(3)]
    assert got == ["0", "8", "9"]


def _until_read(connection: Any) -> None:
    """Wait until the runner has read all that was sent."""
    assert connection._ws.ping().wait(5)


def test_a_caller_may_ask_for_less_to_wait(client: Any, live: Any, eventually: Eventually) -> None:
    live.let(go=False)
    with talk(client, "/many", max_buffering=1) as connection:
        connection.send({"text": "0"})
        eventually(lambda: "many" in live.all_seen())
        for n in range(1, 10):
            connection.send({"text": str(n)})
        _until_read(connection)
        live.let()
        assert [connection.recv()["text"] for _ in range(2)] == ["0", "9"]


def test_without_buffering_nothing_is_lost(client: Any, live: Any) -> None:
    live.let()
    with talk(client, "/many") as connection:
        for n in range(100):
            connection.send({"text": str(n)})
        assert [connection.recv()["text"] for _ in range(100)] == [str(n) for n in range(100)]


def test_what_waits_goes_into_one_call(client: Any, live: Any) -> None:
    live.let(go=False)
    with talk(client, "/batch") as connection:
        for text in ("a", "b", "c", "d", "alone"):
            connection.send({"text": text})
        _until_read(connection)
        live.let()
        got: list[str] = []
        while len(got) < 5:
            texts = connection.recv()["texts"]
            assert len(texts) <= 3
            assert "alone" not in texts[1:]
            got += texts
    assert got == ["a", "b", "c", "d", "alone"]


@pytest.mark.parametrize(
    ("path", "sent", "reason"),
    [
        ("/realtime", {"txt": "a"}, "text\n  Field required"),
        ("/realtime", {"text": "bad"}, "it was bad"),
        ("/wrong", {"text": "a"}, "`wrong` gave int: give a dict or pydantic model"),
    ],
)
def test_an_error_is_told_and_ends_the_session(
    client: Any, path: str, sent: Any, reason: str
) -> None:
    with talk(client, path) as connection:
        connection.send(sent)
        with pytest.raises(RealtimeError) as told:
            connection.recv()
        assert (told.value.error, reason in told.value.reason) == ("INTERNAL_ERROR", True)
        assert connection.recv() is None


TELLS = """
import os
import fal_notebook as fal
from typing import Annotated
from pydantic import AfterValidator, BaseModel
def checked(text: str) -> str:
    if text == "wrong":
        raise ValueError("not " + os.environ["REALTIME_WORDS"])
    return text
class Say(BaseModel):
    text: Annotated[str, AfterValidator(checked)]
class Tells(fal.App):
    secrets = ["REALTIME_WORDS"]
    @fal.realtime("/realtime")
    async def told(self, input: Say) -> Say:
        raise ValueError("not " + os.environ["REALTIME_WORDS"])
"""


@pytest.mark.parametrize("text", ["wrong", "fails"])
def test_a_told_error_holds_no_secret(
    client: Any, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("REALTIME_WORDS", "correct horse battery")
    cli.run(["secrets", "set", "REALTIME_WORDS", "--from-env"], "fal-notebook")
    options = {"use_jwt": False, "path": "/realtime"}
    with app_of(TELLS, "Tells"), client.realtime("tester/tells", **options) as connection:
        connection.send({"text": text})
        with pytest.raises(RealtimeError) as told:
            connection.recv()
    cli.run(["secrets", "delete", "REALTIME_WORDS"], "fal-notebook")
    assert "not [secret REALTIME_WORDS]" in told.value.reason


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        ("text", "send binary ones, encoded with msgpack"),
        (b"\xc1", "cannot be decoded: FormatError"),
    ],
)
def test_what_is_no_msgpack_is_refused(
    gateway: GatewayInfo, live: Any, sent: Any, reason: str
) -> None:
    with open_socket(gateway, "/live/realtime") as socket:
        socket.send(sent)
        told = json.loads(socket.recv())
        assert told["type"] == "x-fal-error"
        assert reason in told["reason"]
        assert closed(socket)[0] == 1000


def test_only_what_the_app_did_wrong_is_an_error_of_the_app(
    client: Any, live: Any, eventually: Eventually
) -> None:
    with talk(client, "/realtime") as connection:
        connection.send({"text": "bad"})
        with pytest.raises(RealtimeError):
            connection.recv()
    eventually(lambda: "it was bad" in str(live.errors()))
    assert "Field required" not in str(live.errors())


def test_messages_may_be_coded_otherwise(gateway: GatewayInfo, live: Any) -> None:
    with open_socket(gateway, "/live/json") as socket:
        socket.send(b'{"a": 1}')
        assert json.loads(socket.recv()) == {"a": 1}


def test_a_method_whose_caller_goes_away_is_cancelled(
    gateway: GatewayInfo, live: Any, eventually: Eventually
) -> None:
    with open_socket(gateway, "/live/long") as socket:
        socket.send(msgpack.packb(DRAW))
        eventually(lambda: "begun" in live.all_seen())
    eventually(lambda: "ended" in live.all_seen())
    eventually(lambda: in_flight(live) == 0)


def test_the_document_tells_of_realtime(live: Any) -> None:
    told = live.openapi()["paths"]["/batch"]["x-fal-protocol"]
    assert told == {
        "type": "realtime",
        "operationId": "batch",
        "config": {"buffering": None, "sessionTimeout": None, "maxBatchSize": 3},
        "contentType": "application/msgpack",
        "realtimeMode": "unary",
    }


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"buffering": 0}, "buffering=0 of realtime '/r' must be a whole number from 1"),
        ({"max_batch_size": "4"}, "max_batch_size='4' of realtime '/r' must be a whole number"),
        ({"session_timeout": 0}, "session_timeout=0 of realtime '/r' must be seconds above 0"),
        ({"session_timeout": "9s"}, "session_timeout='9s' of realtime '/r' must be seconds"),
    ],
)
def test_wrong_options_are_refused(options: Any, said: str) -> None:
    with pytest.raises(AppDefinitionError, match=said):
        fal.realtime("/r", **options)


def test_an_iterator_of_messages_needs_an_async_method(gateway: GatewayInfo) -> None:
    source = LIVE.replace("async def total", "def total").replace("async for", "for", 1)
    with notebook(), pytest.raises(FalNotebookError, match="`total` takes an iterator of messages"):
        fal.deploy(define(source)["Live"], wait=True, name="nothing")


@pytest.mark.parametrize(
    ("options", "parameters", "said"),
    [
        ("", "a, b", "`m` is called with one message, and cannot be: missing a required argument"),
        (", max_batch_size=3", "a", "one to 3 messages, as in *messages, and cannot be: too many"),
    ],
)
def test_a_method_takes_the_messages_that_it_is_called_with(
    gateway: GatewayInfo, options: str, parameters: str, said: str
) -> None:
    source = (
        "import fal_notebook as fal\nclass Live(fal.App):\n"
        f"    @fal.realtime('/r'{options})\n    def m(self, {parameters}): return {{}}"
    )
    with notebook(), pytest.raises(FalNotebookError, match=re.escape(said)):
        fal.deploy(define(source)["Live"], wait=True, name="nothing")


PROGRAM = """
import fal_client
with fal_client.realtime("tester/live", use_jwt=False) as connection:
    connection.send({"text": "a"})
    print(connection.recv()["text"])
with fal_client.ws_connect("tester/live", path="/realtime", use_jwt=False) as socket:
    socket.send(b"nothing")
    print(socket.recv())
"""


def test_the_environment_of_the_client_is_enough_also_for_tls(live: Any) -> None:
    environment = str(cli.run(["client-env", "--sh", "--key"], "fal-notebook"))
    clean = {n: v for n, v in os.environ.items() if n in ("PATH", "HOME", "TMPDIR")}
    line = f"{environment}\nexec {sys.executable} -c '{PROGRAM}'"
    done = subprocess.run(["sh", "-c", line], env=clean, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == "A"
    assert "x-fal-error" in second


def test_a_token_is_refused_with_what_works_instead(
    client: Any, gateway: GatewayInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fal_client.client, "REST_URL", f"{gateway.url}/rest")
    with (
        pytest.raises(fal_client.FalClientHTTPError, match=r"use_jwt=False") as refused,
        client.realtime("tester/live"),
    ):
        pass
    assert refused.value.status_code == 501
    with control(gateway) as api:
        api.headers.clear()
        answer = api.get("/run/tester/live/realtime", params={"fal_jwt_token": "x"})
    assert answer.status_code == 401
    assert "fal_jwt_token is not known here" in answer.json()["detail"]
