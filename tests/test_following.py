"""Log lines over restarts of the gateway and under floods: none twice, none lost that is kept."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import control, deployed, eventually, kill_gateway

from fal_notebook import cli, discovery, sync
from fal_notebook.discovery import GatewayInfo
from fal_notebook.exceptions import (
    GatewayError,
    GatewayUnavailableError,
    NotFoundError,
    OptionError,
)
from fal_notebook.gateway import paths
from fal_notebook.handle import Handle, shared_client
from fal_notebook.runner import log_file

COUNTS = """
import threading, time
def count():
    n = 0
    while True:
        print(n)
        n += 1
        time.sleep(0.005)
def counts() -> int:
    threading.Thread(target=count, daemon=True).start()
    return 1
"""

FLOODS = """
import subprocess
def floods(megabytes: int) -> int:
    lines = megabytes * 1024
    subprocess.run(["seq", "-f", "%01023.0f", "1", str(lines)])
    print("over")
    return lines
"""


def until(lines: Iterator[dict[str, Any]], number: int) -> list[int]:
    found = []
    for line in lines:
        found.append(int(line["message"]))
        if found[-1] >= number:
            return found
    raise AssertionError(f"they ended after {found[-3:]}")


def test_following_a_request_ends_with_it(own_gateway: Path) -> None:
    source = "import time\ndef f(n: int):\n    for i in range(n): print(i); time.sleep(0.2)"
    with deployed(source) as handle:
        before, request = handle.submit(0), handle.submit(5)
        lines = handle.logs(follow=True, request=request.request_id)
        assert [line["message"] for line in lines] == list("01234")
        assert not list(handle.logs(follow=True, request=before.request_id))
        with pytest.raises(NotFoundError, match=f"no request {'0' * 32} of"):
            handle.logs(follow=True, request="0" * 32)


def test_following_goes_on_over_restarts_without_a_gap(own_gateway: Path) -> None:
    with deployed(COUNTS, keep_alive=60) as handle:
        handle()
        lines = handle.logs(follow=True, tail=10_000)
        assert isinstance(lines, Iterator)
        found = until(lines, 100)
        for stop in (
            lambda: kill_gateway(own_gateway),
            lambda: sync.wait(shared_client().stop_gateway(keep_runners=True)),
        ):
            stop()
            discovery.wait_until_gone(own_gateway)
            time.sleep(0.2)  # lines that are written while no gateway runs
            discovery.ensure(own_gateway)
            found += until(lines, found[-1] + 200)
        assert found == list(range(len(found)))
        handle.delete()
        for _ in lines:  # it ends
            pass


def test_following_starts_no_gateway(own_gateway: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fal_notebook.patience.LONGEST", 0.5)
    with deployed("def f(): print('here')", keep_alive=60) as handle:
        handle()
        lines = handle.logs(follow=True)
        assert isinstance(lines, Iterator)
        assert next(lines)["message"] == "here"
        sync.wait(shared_client().stop_gateway())
        discovery.wait_until_gone(own_gateway)
        with pytest.raises(GatewayUnavailableError):
            next(lines)
        assert discovery.find(own_gateway) is None


def test_cursors_and_lines_outlive_the_gateway(own_gateway: Path) -> None:
    source = "def f(text: str): print(text)"
    with deployed(source, keep_alive=60) as handle:
        handle("one")
        page = log_page(handle, cursor="", limit=1)
        assert ([line["message"] for line in page["lines"]], page["more"]) == (["one"], True)
        kill_gateway(own_gateway)
        discovery.wait_until_gone(own_gateway)
        handle("two")
        page = log_page(handle, cursor=page["cursor"])
        assert ([line["message"] for line in page["lines"]], page["more"]) == (["two"], False)
        sync.wait(shared_client().stop_gateway())  # with its runners
        discovery.wait_until_gone(own_gateway)
        assert [line["message"] for line in handle.logs()] == ["one", "two"]
        assert log_page(handle, cursor=page["cursor"])["lines"] == []


def log_page(handle: Handle, **query: Any) -> dict[str, Any]:
    return sync.wait(shared_client().log_page(handle.owner, handle.name, **query))


def test_a_flood_past_python_is_bounded_and_followed(gateway: GatewayInfo) -> None:
    with deployed(FLOODS, serve=True, auth="public", keep_alive=60) as handle:
        lines = handle.logs(follow=True, tail=10_000)
        assert isinstance(lines, Iterator)
        handle(1)
        found = []
        for line in lines:
            if line["message"] == "over":
                break
            found.append(int(line["message"]))
        assert found == list(range(1, 1024 + 1))
        handle(200)
        for line in lines:
            if line["message"] == "over":
                break
            found.append(int(line["message"]))
        flood = found[1024:]
        assert flood == sorted(set(flood))
        assert flood[-1] == 200 * 1024
        path = log_of(handle)
        eventually(lambda: log_file.disk_space(path.stat()) <= log_file.MOST)
        assert path.stat().st_size > 200_000_000


def log_of(handle: Handle) -> Path:
    state = Path(os.environ["FAL_NOTEBOOK_STATE"])
    return paths.runner_log(state, handle.runners()[0]["id"])


def test_levels_are_filtered_over_http_and_by_the_command(gateway: GatewayInfo) -> None:
    source = """
import logging
def warns() -> None:
    print("plain")
    logging.getLogger("x").warning("careful")
    logging.getLogger("x").error("broken")
"""
    with deployed(source, keep_alive=60) as handle:
        handle()
        assert [x["message"] for x in handle.logs(level="warning")] == ["careful", "broken"]
        followed = handle.logs(follow=True, level="ERROR")
        assert isinstance(followed, Iterator)
        assert next(followed)["message"] == "broken"
        shown = list(cli.as_lines(cli.run(["logs", "warns", "--level", "error"], "fal")))
        assert len(shown) == 1
        with pytest.raises(OptionError, match="level=loud is none of debug"):
            handle.logs(level="loud")
        with control(gateway) as client:
            path = "/api/apps/tester/warns/logs"
            for query in ({"level": "loud"}, {"cursor": "x"}, {"cursor": "x", "follow": True}):
                assert client.get(path, params=query).status_code == 422
            assert client.get(path, params={"limit": 0}).status_code == 422


def test_the_logs_of_a_deleted_app_are_removed(
    gateway: GatewayInfo, eventually: Callable[[Callable[[], Any]], Any]
) -> None:
    with deployed("import os\ndef f(): print('x'); os._exit(1)", keep_alive=60) as handle:
        path = log_of(handle)
        with pytest.raises(GatewayError):
            handle()
        eventually(lambda: not any(path.stem == runner["id"] for runner in handle.runners()))
        assert path.exists()
        handle.delete()
        assert not path.exists()
