"""A gateway inside the test's own event loop, without its port: real store, zygote and runners."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runner_bench import payload

from fal_notebook import __version__, discovery
from fal_notebook.gateway import autoscaler, paths
from fal_notebook.gateway.fleet import Fleet, Runner
from fal_notebook.gateway.gateway import Gateway
from fal_notebook.gateway.metrics import Metrics
from fal_notebook.gateway.operations.deploy import DeployRequest, deploy
from fal_notebook.gateway.store import Revision, RunnerRow
from fal_notebook.options import parse_options
from fal_notebook.runner.envelope import unpack


def open_gateway(state: Path) -> Gateway:
    info = discovery.GatewayInfo("http://127.0.0.1:9", "t", os.getpid(), 1, __version__)
    gateway = Gateway(state, info)
    gateway.restore()
    return gateway


async def close_gateway(gateway: Gateway) -> None:
    await gateway.stop_runners(0.2)
    await gateway.close()


async def deployed(gateway: Gateway, source: str, name: str = "app", **options: Any) -> Fleet:
    """Deploy the source's last function and wait for the outcome; raise when it failed."""
    content = payload(source)
    digest = hashlib.sha256(content + repr(options).encode()).hexdigest()
    blob = paths.blob(gateway.state, hashlib.sha256(content).hexdigest())
    blob.parent.mkdir(exist_ok=True)
    blob.write_bytes(content)
    manifest = {**unpack(content)[0], "interpreter": sys.executable}
    request = DeployRequest(
        name=name,
        digest=digest,
        payload=blob.name,
        manifest=manifest,
        options=options,
        notebook="test",
    )
    reply = deploy(gateway, "tester", request)
    running = gateway.deployments.get(("tester", name))
    if running is not None:
        await asyncio.wait([running.task])
    revision = gateway.store.revision(reply.revision)
    assert revision is not None
    if revision.state == "FAILED":
        raise DeployFailed(revision.error)
    return gateway.fleets["tester", name]


class DeployFailed(Exception):  # noqa: N818
    """What the revision says of its failure."""


async def until(condition: Callable[[], Any], timeout: float = 20.0) -> Any:
    """Let the loop run until a condition holds; return its value."""
    async with asyncio.timeout(timeout) if sys.version_info >= (3, 11) else _no_timeout():
        while not (value := condition()):
            await asyncio.sleep(0.005)
        return value


class _no_timeout:  # noqa: N801  Python 3.10: pytest's own timeout stands in
    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *error: Any) -> None: ...


async def ask(fleet: Fleet) -> Runner:
    """Wait in line for a slot, as the proxy does; `fleet.release` gives it back."""
    return fleet.take() or await fleet.enqueue().granted


async def post(runner: Runner, body: bytes = b"{}") -> tuple[int, bytes]:
    """Send one request to a runner whose slot was taken."""
    connection = await runner.pool.acquire()
    head = f"POST / HTTP/1.1\r\nhost: r\r\nx-fal-runner-secret: {runner.row.secret}\r\n"
    connection.begin(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    await connection.head()
    content = b""
    while data := await connection.read():
        content += data
    runner.pool.release(connection)
    return connection.status, content


def states(gateway: Gateway, runner_id: str) -> list[tuple[str, str]]:
    """Return the recorded states of a runner with their causes."""
    events = gateway.store.events(0, "tester", "app")
    data = [event.data for event in events if event.kind == "runner"]
    return [(item["state"], item["cause"]) for item in data if item["runner"] == runner_id]


def rows(gateway: Gateway, where: str = "1") -> list[RunnerRow]:
    return gateway.store.select(RunnerRow, where)


def revision(identity: str = "v1") -> Revision:
    machine = {"name": "XS"}
    return Revision(identity, "o", "a", 1, "ACTIVE", "", "", {}, {}, {}, machine)


def fleet_of(runners: int, multiplexing: int = 1, **calls: Any) -> Fleet:
    metrics = Metrics().for_app("o/a")
    nothing = lambda fleet: None  # noqa: E731
    fleet = Fleet(
        "o",
        "a",
        metrics,
        calls.get("on_need", nothing),
        calls.get("on_idle", nothing),
        calls.get("run_queued", lambda fleet, runner, number: None),
    )
    options = parse_options({}).model_dump()
    scaling = autoscaler.Scaling(max_concurrency=10, max_multiplexing=multiplexing)
    fleet.configure(revision(), options, scaling)
    for number in range(runners):
        add_runner(fleet, f"r{number}")
    return fleet


def add_runner(fleet: Fleet, identity: str, state: str = "IDLE", of: str = "v1") -> Runner:
    row = RunnerRow(identity, "o", "a", of, state, "s", "XS")
    fleet.runners[identity] = Runner(row, since=time.time())
    return fleet.runners[identity]
