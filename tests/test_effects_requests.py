"""What each option does to requests: who may send them, how long they take, how often they run."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from effects import effect_of, given
from serving import ACT, deployed, eventually, in_flight, run_url, with_key

from fal_notebook import cli
from fal_notebook.discovery import GatewayInfo
from fal_notebook.exceptions import FalNotebookError

SAYS = "def says() -> str:\n    print('secret line')\n    return 'said'"
FAILS = """
from fastapi import HTTPException

def fails(log: str) -> None:
    with open(log, "a") as file:
        file.write("once\\n")
    raise HTTPException(503, "not now", {"x-fal-stop-runner": "0"})
"""


def new_key(*options: str) -> str:
    return str(cli.run(["keys", "create", *options], "fal-notebook")).splitlines()[0]


@pytest.fixture
def guest(gateway: GatewayInfo) -> str:
    return new_key("--user", "guest")


@effect_of("serve")
def test_others_may_call_only_what_is_served(gateway: GatewayInfo) -> None:
    with deployed(SAYS, **given(serve=True), auth="public") as says:
        assert httpx.post(run_url(gateway, says)).status_code == 200


@effect_of("auth")
def test_auth_says_who_may_call(gateway: GatewayInfo, guest: str) -> None:
    with deployed(SAYS, **given(auth="shared"), serve=True) as says:
        url = run_url(gateway, says)
        assert httpx.post(url, headers=with_key(guest)).status_code == 200
        assert httpx.post(url).status_code == 401


@effect_of("name", "team")
def test_an_app_has_the_name_and_the_owner_that_are_given() -> None:
    with deployed(SAYS, **given(name="another", team="crew")) as says:
        assert says.status()["url"].endswith("/run/crew/another")


@effect_of("private_logs")
def test_callers_do_not_see_private_logs(gateway: GatewayInfo, guest: str) -> None:
    queue = f"{gateway.url}/queue/tester/says"
    owner = with_key(new_key())
    with deployed(SAYS, **given(private_logs=True), serve=True, auth="shared"):
        told = httpx.post(queue, headers=with_key(guest)).json()
        status = f"{told['status_url']}?logs=1"
        while httpx.get(status, headers=owner).status_code == 202:
            time.sleep(0.02)
        assert "secret line" in str(httpx.get(status, headers=owner).json()["logs"])
        assert httpx.get(status, headers=with_key(guest)).json()["logs"] == []


@effect_of("request_timeout")
def test_a_request_may_take_only_so_long() -> None:
    with (
        deployed(ACT, **given(request_timeout=1)) as act,
        pytest.raises(FalNotebookError, match="request_timeout"),
    ):
        act(do="sleep", n=4)


@effect_of("request_start_timeout")
def test_a_request_must_have_begun_in_time(gateway: GatewayInfo) -> None:
    options = {**given(request_start_timeout=1), "max_concurrency": 1}
    with deployed(ACT, **options) as act, ThreadPoolExecutor() as pool:
        first = pool.submit(act, do="sleep", n=4)
        eventually(lambda: in_flight(gateway))
        with pytest.raises(FalNotebookError, match="request_start_timeout"):
            act(do="pid")
        assert first.result() == 4


@effect_of("retry_config")
def test_retries_are_as_many_as_are_given(gateway: GatewayInfo, tmp_path: Path) -> None:
    with deployed(FAILS, **given(retry_config={"server_error": {"retries": 1}})):
        assert attempts(gateway, tmp_path / "log", 2) == 2


@effect_of("skip_retry_conditions")
def test_a_condition_that_is_skipped_is_not_retried(gateway: GatewayInfo, tmp_path: Path) -> None:
    with deployed(FAILS, **given(skip_retry_conditions=["server_error"])):
        assert attempts(gateway, tmp_path / "log", 1) == 1


def attempts(gateway: GatewayInfo, log: Path, expected: int) -> int:
    """Return how often a failing request is tried; more than is expected is enough to know."""
    headers = {"authorization": f"Bearer {gateway.token}"}
    queue = f"{gateway.url}/queue/tester/fails"
    status = httpx.post(queue, json={"log": str(log)}, headers=headers).json()["status_url"]
    tried = 0
    while tried <= expected and httpx.get(status, headers=headers).status_code == 202:
        tried = len(log.read_text().splitlines()) if log.exists() else 0
        time.sleep(0.02)
    return len(log.read_text().splitlines())


@effect_of("metadata")
def test_the_schema_is_the_given_one() -> None:
    schema = {"openapi": "3.1.0", "info": {"title": "mine", "version": "1"}, "paths": {}}
    with deployed(SAYS, **given(metadata={"openapi": schema})) as says:
        assert says.openapi()["info"]["title"] == "mine"
