"""The unmodified Python client of fal, turned to the gateway: each of its methods.

Each is called by ``fal_calls.py``, a process that has nothing but what `client-env` prints.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fal_client
import fal_client.client
import httpx
import PIL.Image
import pytest
from fal_client import SyncClient
from serving import control, deployed

from fal_notebook import cli
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
def client(key: str) -> Iterator[SyncClient]:
    client = SyncClient(key=key)
    yield client
    client._client.close()  # it has no close of its own


def test_positions_and_cancel(client, eventually) -> None:
    with deployed(TALK, serve=True, max_concurrency=1):
        first = client.submit("tester/talk", {"word": "first", "seconds": 1.5})
        eventually(lambda: isinstance(first.status(), fal_client.InProgress))
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


COUNT = "def count(n: int):\n    for i in range(n):\n        yield {'i': i}"
HI = {"word": "hi"}

Outcomes = Callable[[str, str], dict[str, Any]]


def client_env(*options: str) -> str:
    return str(cli.run(["client-env", *options], "fal-notebook"))


def by_environment(kind: str, folder: Path) -> str:
    return f"{client_env('--sh', '--key')}\nexec {sys.executable} fal_calls.py {kind}"


def by_attributes(kind: str, folder: Path) -> str:
    (folder / "attributes.py").write_text(client_env("--python", "--key"))
    return f"exec {sys.executable} fal_calls.py {kind}"


WAYS = {"environment": by_environment, "attributes": by_attributes}


@pytest.fixture(scope="module")
def outcomes(gateway: GatewayInfo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcomes]:
    """What came of each method; the program runs once for each client and way."""
    folder, known = tmp_path_factory.mktemp("calls"), {}
    clean = {n: v for n, v in os.environ.items() if n in ("PATH", "HOME", "TMPDIR")}

    def get(kind: str, way: str) -> dict[str, Any]:
        if (kind, way) not in known:
            line = f"{WAYS[way](kind, folder)} tester/talk tester/count"
            line += f" {folder / 'attributes.py'}" if way == "attributes" else ""
            here = Path(__file__).parent
            done = subprocess.run(
                ["sh", "-c", line], cwd=here, env=clean, capture_output=True, text=True, timeout=60
            )
            assert done.returncode == 0, done.stderr
            known[kind, way] = json.loads(done.stdout)
        return known[kind, way]

    with deployed(TALK, serve=True, max_concurrency=1), deployed(COUNT, serve=True):
        yield get


@pytest.fixture(params=["environment", "attributes"])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["sync", "async"])
def outcome(request: pytest.FixtureRequest, outcomes: Outcomes, way: str) -> dict[str, Any]:
    """What came of each method of one client, turned to the gateway in one way."""
    return outcomes(request.param, way)


@pytest.fixture
def direct(gateway: GatewayInfo) -> Any:
    """The answer of the app itself."""
    with control(gateway) as api:
        return api.post("/run/tester/talk", json=HI).json()


def lines(status: dict[str, Any]) -> list[str]:
    return [line["message"] for line in status.get("logs") or ()]


def test_run(outcome, direct) -> None:
    assert outcome["run"] == direct == HI


def test_submit(outcome, direct) -> None:
    assert outcome["submit"]["result"] == direct
    assert outcome["submit"]["id"]


def test_status_with_logs(outcome) -> None:
    status = outcome["status"]
    assert (status["is"], lines(status)) == ("Completed", ["saying hi"])
    assert status["metrics"]["inference_time"] >= 0.3


def test_iter_events(outcome) -> None:
    events = outcome["iter_events"]
    assert [event["is"] for event in events][-1] == "Completed"
    assert {event["is"] for event in events} <= {"Queued", "InProgress", "Completed"}
    assert lines(events[-1]) == ["saying hi"]


def test_result(outcome, direct) -> None:
    assert outcome["result"] == direct


def test_cancel(outcome) -> None:
    assert outcome["cancel"] == 499


def test_subscribe(outcome, direct) -> None:
    assert outcome["subscribe"]["result"] == direct
    told = [line for update in outcome["subscribe"]["updates"] for line in lines(update)]
    assert "saying hi" in told


def test_stream(outcome, gateway) -> None:
    with control(gateway) as api:
        answer = api.post("/run/tester/count", json={"n": 3}).text
    direct = [json.loads(line[6:]) for line in answer.splitlines() if line.startswith("data: ")]
    assert outcome["stream"] == direct == [{"i": 0}, {"i": 1}, {"i": 2}]


@pytest.fixture
def uploaded(gateway, outcomes) -> Callable[[str, str], httpx.Response]:
    """What is read of a file that a client has uploaded; its attributes are what turn uploads."""

    def get(kind: str, method: str) -> httpx.Response:
        url = outcomes(kind, "attributes")[method]
        assert str(url).startswith(f"{gateway.url}/storage/files/"), url
        return httpx.get(url)

    return get


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_upload(uploaded, kind: str) -> None:
    answer = uploaded(kind, "upload")
    assert (answer.headers["content-type"], answer.text) == ("text/plain", "hello")


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_upload_file(uploaded, kind: str) -> None:
    answer = uploaded(kind, "upload_file")
    assert answer.content == Path(__file__).with_name("fal_calls.py").read_bytes()
    assert answer.headers["content-type"].startswith("text/x-python")


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_upload_image(uploaded, kind: str) -> None:
    image = PIL.Image.open(io.BytesIO(uploaded(kind, "upload_image").content))
    assert (image.size, image.getpixel((0, 0))) == ((4, 3), (255, 0, 0))


def test_what_is_no_stream_is_streamed_as_one_event(client, gateway) -> None:
    with deployed(TALK, serve=True) as handle:
        assert list(client.stream("tester/talk", HI)) == [HI]
        with control(gateway) as api:
            failed = api.post("/run/tester/talk/stream", json={"word": "no"})
            assert failed.status_code == 500
        assert list(handle.openapi()["paths"]) == ["/"]
