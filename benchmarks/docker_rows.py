"""The rows of containers: how soon they answer, what a redeploy takes; none without an engine."""

from __future__ import annotations

import contextlib
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import docker
from docker.errors import DockerException
from loads import Target, first_200
from peers import BODY
from report import Result, say
from rows import Effort, latencies, minus
from session import Session, cell, until

PARALLEL = 8
BASE = "python:{}.{}-slim".format(*sys.version_info)
PEER = "docker run true"
# A whole core: how fast a container starts is to be seen, not how a small one is held back.
MACHINE = "target=docker machine_type=S"


def containers(session: Session, effort: Effort) -> list[Result]:
    """Start containers, one and several; deploy again; add the gateway's way to their answers."""
    with _engine() as engine:
        if engine is None:
            say("docker: skipped, there is no engine with " + BASE)
            return []
        cold = _starts(session, effort, engine)
        return [cold, _parallel(session), *_redeploys(session, effort), _overhead(session, effort)]


@contextlib.contextmanager
def _engine() -> Iterator[Any]:
    try:
        client = docker.DockerClient.from_env()
        client.images.get(BASE)
    except DockerException:
        yield None
        return
    with contextlib.closing(client):
        yield client


def _starts(session: Session, effort: Effort, engine: Any) -> Result:
    """From a request to an app without runners to its answer, in turn with a bare container."""
    name = session.new_name()
    session.deploy(name, f"{MACHINE} keep_alive=0")
    ours, peer = [], []
    for _ in range(effort.rounds + 1):
        until(lambda: not session[name].runners())
        ours.append(_seconds(lambda: first_200(session.target(name))))
        peer.append(_seconds(lambda: engine.containers.run(BASE, "true", remove=True)))
    session[name].delete()
    warm = slice(1, None) if effort.rounds > 1 else slice(None)
    name = "container start to first 200"
    return Result(name, "s", ours[warm], PEER, peer[warm], budget=0.7)


def _parallel(session: Session) -> Result:
    """Have so many containers more started at once, until all of them are ready."""
    name = session.new_name()
    session.deploy(name, f"{MACHINE} min_concurrency=1 max_concurrency={PARALLEL + 1}")

    def start() -> None:
        session[name].scale(min_concurrency=PARALLEL + 1)
        until(lambda: session.ready(name) == PARALLEL + 1, 60)

    taken = _seconds(start)
    session[name].delete()
    return Result(f"{PARALLEL} parallel container starts", "s", [taken], budget=3)


def _redeploys(session: Session, effort: Effort) -> list[Result]:
    """Run a cell whose code alone has changed, to the first 200, and one that has not changed."""
    name = session.new_name()
    session.deploy(name, f"{MACHINE} keep_alive=300")
    changed, same = [], []
    for number in range(effort.rounds):
        source = cell(name, f"{MACHINE} keep_alive=300")
        source = source.replace("text * times", f"text * times + '{number}'[:0]")

        def deployed(source: str = source) -> None:
            session.run(source)
            first_200(session.target(name))

        changed.append(_seconds(deployed))
        same.append(_seconds(deployed) * 1e3)
    session[name].delete()
    return [
        Result("changed cell to first 200 of a container", "s", changed, budget=1.5),
        Result("unchanged cell of a container", "ms", same, budget=100),
    ]


def _overhead(session: Session, effort: Effort) -> Result:
    """Median latency through the gateway minus that of the container asked directly."""
    name = session.new_name()
    session.deploy(name, f"{MACHINE} min_concurrency=1", "async def")
    query = "SELECT address, secret FROM runners WHERE app = ? AND state = 'IDLE'"
    with contextlib.closing(sqlite3.connect(f"{session.state}/store.db")) as store:
        address, secret = store.execute(query, (session[name].name,)).fetchone()
    _, host, port = address.split(":")
    direct = Target((host, int(port)), "/", BODY, (("x-fal-runner-secret", secret),))
    found = latencies({"direct": direct, "gateway": session.target(name)}, effort)
    session[name].delete()
    added = minus(found["gateway"], found["direct"])
    return replace(
        Result("gateway overhead, 1 connection to a container", "ms", added, budget=1),
        difference=True,
    )


def _seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


ROWS = {"docker": containers}
