"""The unmodified JavaScript client of fal, turned to the gateway: each of its methods.

Node comes from the package index and the client, of the committed lock file, from npm's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import javascript
import pytest
from serving import control, deployed

from fal_notebook import cli
from fal_notebook.discovery import GatewayInfo

TALK = """
import time
def talk(word: str, seconds: float = 0) -> dict:
    print("saying", word)
    time.sleep(seconds)
    return {"word": word}
"""
COUNT = "def count(n: int):\n    for i in range(n):\n        yield {'i': i}"


@pytest.fixture(scope="module")
def outcomes(gateway: GatewayInfo, package: Path) -> Iterator[dict[str, Any]]:
    """What came of each method, called by one program with what `client-env` printed."""
    configured = cli.run(["client-env", "--js", "--key"], "fal-notebook")
    program = package / "program.mjs"
    program.write_text(f"{configured}\n{(package / 'calls.mjs').read_text()}")
    clean = {n: v for n, v in os.environ.items() if n in ("PATH", "HOME", "TMPDIR")}
    with deployed(TALK, serve=True, max_concurrency=1), deployed(COUNT, serve=True):
        yield json.loads(javascript.run([str(program)], clean))


@pytest.fixture
def direct(gateway: GatewayInfo) -> Any:
    """The answer of the app itself."""
    with control(gateway) as api:
        return api.post("/run/tester/talk", json={"word": "hi"}).json()


def lines(status: dict[str, Any]) -> list[str]:
    return [line["message"] for line in status.get("logs") or ()]


def test_the_lock_file_names_no_host() -> None:
    assert "://" not in (javascript.HERE / "package-lock.json").read_text()


def test_run(outcomes, direct) -> None:
    assert outcomes["run"] == direct == {"word": "hi"}


def test_queue_submit(outcomes) -> None:
    assert outcomes["submit"]["status"] == "IN_QUEUE"
    assert outcomes["submit"]["request_id"]


def test_queue_status(outcomes) -> None:
    status = outcomes["status"]
    assert (status["status"], lines(status)) == ("COMPLETED", ["saying hi"])


def test_queue_result(outcomes, direct) -> None:
    assert outcomes["result"] == direct


def test_queue_cancel(outcomes) -> None:
    assert outcomes["cancel"] == 499


@pytest.mark.parametrize("mode", ["polling", "streaming"])
def test_subscribe(outcomes, direct, mode: str) -> None:
    outcome = outcomes[mode]
    assert outcome["data"] == direct
    assert outcome["updates"][-1]["status"] == "COMPLETED"
    assert "saying hi" in lines(outcome["updates"][-1])


def test_stream(outcomes, gateway: GatewayInfo) -> None:
    with control(gateway) as api:
        answer = api.post("/run/tester/count", json={"n": 3}).text
    direct = [json.loads(line[6:]) for line in answer.splitlines() if line.startswith("data: ")]
    assert outcomes["stream"] == direct == [{"i": 0}, {"i": 1}, {"i": 2}]


def test_storage_upload(outcomes) -> None:
    assert outcomes["upload"] == ["text/plain", "hello"]


def test_storage_upload_in_parts(outcomes) -> None:
    assert outcomes["multipart"] == ["video/mp4", True, True]
