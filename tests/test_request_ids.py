"""A request is found by its id, or by the beginning or the end of it, wherever it is known."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from serving import deployed, run_url

from fal_notebook import cli
from fal_notebook.discovery import GatewayInfo
from fal_notebook.exceptions import FalNotebookError, NotFoundError, OptionError
from fal_notebook.handle import Handle

SOURCE = """
import asyncio
async def tells(text: str, seconds: float = 0.0) -> int:
    print("told", text)
    await asyncio.sleep(seconds)
    return 1 // len(text)
"""


@pytest.fixture(scope="module")
def tells(gateway: GatewayInfo) -> Iterator[Handle]:
    with deployed(SOURCE, serve=True, auth="public", max_concurrency=1, keep_alive=60) as handle:
        yield handle


def run(*arguments: str) -> str:
    return "\n".join(cli.as_lines(cli.run(list(arguments), "fal-notebook")))


def messages(handle: Handle, request: str) -> list[str]:
    return [line["message"] for line in handle.logs(request=request)]


def test_a_queued_request_is_found_by_each_end_of_its_id(tells: Handle) -> None:
    request = tells.submit("one")
    tells.submit("another").result()
    request.result()
    for part in (request.request_id, request.request_id[:24], request.request_id[-8:]):
        assert messages(tells, part) == ["told one"]
    shown = run("logs", "tells", "--request", request.request_id[-8:])
    assert shown.split()[2] == request.request_id[-8:]
    with pytest.raises(OptionError, match="000 is a part of several requests' ids; write more"):
        run("logs", "tells", "--request", "000")


def test_a_queued_request_is_known_before_it_writes(tells: Handle) -> None:
    tells.submit("busy", 4.0)
    waits = tells.submit("waits")
    assert run("logs", "tells", "--request", waits.request_id[-8:]) == ""
    waits.result()


def test_a_direct_request_is_found_by_its_lines(gateway: GatewayInfo, tells: Handle) -> None:
    answer = httpx.post(run_url(gateway, tells), json={"text": "direct"})
    identity = answer.headers["x-fal-request-id"]
    for part in (identity, identity[:12], identity[-8:]):
        assert messages(tells, part) == ["told direct"]


def test_a_part_of_a_queued_and_of_a_direct_request_is_not_one(gateway: GatewayInfo) -> None:
    with deployed(SOURCE.replace("tells", "both"), serve=True, auth="public") as both:
        answer = httpx.post(run_url(gateway, both), json={"text": "direct"})
        direct = answer.headers["x-fal-request-id"].replace("-", "")
        queued = direct[:8] + "0" * 24
        given = {"x-fal-submit-id": queued}
        httpx.post(f"{gateway.url}/queue/tester/both", json={"text": "queued"}, headers=given)
        assert both.request(queued).result() == 0
        with pytest.raises(OptionError, match="is a part of several requests' ids"):
            messages(both, direct[:8])
        assert messages(both, queued) == ["told queued"]


@pytest.mark.parametrize("part", ["nowhere", "f" * 32, "a/b c", "%", "_"])
def test_what_is_nowhere_is_one_sentence(tells: Handle, part: str) -> None:
    with pytest.raises(NotFoundError, match=f"no request {part} of tester/tells"):
        run("logs", "tells", "--request", part)


def test_other_apps_requests_are_not_found(tells: Handle) -> None:
    request = tells.submit("mine")
    with deployed("def other(): return 1") as other, pytest.raises(NotFoundError):
        messages(other, request.request_id)


def test_the_sample_of_an_error_is_found_by_each_end(tells: Handle, eventually) -> None:
    request = tells.submit("")
    with pytest.raises(ZeroDivisionError):
        request.result()
    eventually(tells.errors)
    for part in (request.request_id, request.request_id[:24], request.request_id[-8:]):
        assert f"request {request.request_id}" in run("errors", "tells", "--request", part)
    with pytest.raises(FalNotebookError, match="is not the sample of an error"):
        run("errors", "tells", "--request", "nowhere")
