"""One request on its way: what callers cannot say to a runner, runners that die, slow bodies."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from serving import control, deployed, run_url

from fal_notebook.discovery import GatewayInfo
from fal_notebook.gateway import exchange
from fal_notebook.gateway.fleet import Fleet
from fal_notebook.gateway.metrics import Metrics

ACT = """
import os, time
def exchanged(do: str = "echo", n: float = 0):
    if do == "exit":
        os._exit(3)
    if do == "sleep":
        time.sleep(n)
    return os.getpid() if do == "pid" else n
"""


@pytest.fixture(scope="module")
def act(gateway: GatewayInfo) -> Iterator[str]:
    """A public app that does what a request asks for, on one runner; its URL."""
    options = {"max_concurrency": 1, "max_multiplexing": 8, "keep_alive": 60, "min_concurrency": 1}
    with deployed(ACT, serve=True, auth="public", **options) as handle:
        yield run_url(gateway, handle)


def in_flight(gateway: GatewayInfo) -> int:
    with control(gateway) as client:
        return int(client.get("/api/apps/tester/exchanged").json()["in_flight"])


@pytest.mark.parametrize("wanted", ["states", "end", "cancel", "link"])
def test_callers_cannot_speak_the_gateways_own_language(
    gateway: GatewayInfo, act: str, wanted: str
) -> None:
    first = httpx.post(act, json={"do": "pid"}).json()
    for name in ("x-fal-link", "X-FAL-LINK", "x-fal-runner-secret"):
        answer = httpx.post(f"{act}/_fal/{wanted}", headers={name: wanted}, timeout=5)
        assert answer.json() == {"detail": f"Path /_fal/{wanted} not found"}
        assert httpx.post(act, json={"n": 2}, headers={name: wanted}, timeout=5).json() == 2
    assert in_flight(gateway) == 0
    assert httpx.post(act, json={"do": "pid"}).json() == first


# --- runners that die -------------------------------------------------------------------------
def test_no_request_is_given_to_a_runner_that_has_crashed(act: str) -> None:
    for _ in range(15):
        assert httpx.post(act, json={"do": "exit"}, timeout=20).status_code == 503
        assert httpx.post(act, json={"n": 1}, timeout=20).json() == 1


async def test_a_body_that_does_not_come_is_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "UPLOAD_STALL", 0.05)
    metrics = Metrics(list, lambda process: {}).for_app("o/a")
    fleet = Fleet("o", "a", metrics, lambda fleet: None, lambda fleet: None)
    sent: list[Any] = []

    async def receive() -> Any:
        return await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    request = exchange.Request({"headers": []}, {}, b"/", "r", None)
    await exchange.Exchange(fleet, request, lambda *gone: None, 1000).run(receive, send)
    assert sent[0]["status"] == 408


# --- what a runner gets from the gateway's process ---------------------------------------------
@pytest.mark.skipif(sys.platform != "linux", reason="descriptors are listed in /proc")
def test_a_runner_inherits_no_descriptor_of_the_gateway(gateway: GatewayInfo) -> None:
    source = (
        "import os\ndef held() -> list:\n    folder = '/proc/self/fd/'\n"
        "    return [os.path.realpath(folder + name) for name in os.listdir(folder)]"
    )
    with deployed(source, serve=True, auth="public") as handle:
        found = httpx.post(run_url(gateway, handle), json={}, timeout=20).json()
    assert not [path for path in found if path.endswith(("gateway.log", ".db", ".lock"))]
    files = [path for path in found if not path.startswith("/proc/")]
    # Its input (libuv holds another), its log and the program that it runs.
    assert {path.rpartition(".")[2] for path in files} <= {"/dev/null", "log", "zip"}
