"""The rows: each function takes a session and how much to do, and returns its results."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

import psutil
from loads import Client, Target, first_200, load
from peers import BODY, bare, nginx
from report import Result
from session import Session, cell, until

BARE = "bare FastAPI"
CONNECTIONS = 32


@dataclass(frozen=True)
class Effort:
    """How much is measured: rounds (A B A B …), requests per round, seconds per load."""

    rounds: int = 5
    starts: int = 15
    requests: int = 1000
    seconds: float = 3.0
    idle_seconds: float = 10.0
    wrk: bool = True
    nginx: bool = True


QUICK = Effort(
    rounds=1, starts=1, requests=50, seconds=0.3, idle_seconds=0.5, wrk=False, nginx=False
)


def cell_to_200(session: Session, effort: Effort) -> list[Result]:
    """From running a cell, with a warm gateway, to the first 200 of its URL."""
    ours: list[float] = []
    peer: list[float] = []
    for number in range(effort.rounds + 1):
        name = session.new_name()
        source = cell(name)
        started = time.perf_counter()
        session.run(source)
        first_200(session.target(name))
        ours.append(time.perf_counter() - started)
        session[name].delete()
        peer.append(_bare_start())
        if number == 0 and effort.rounds > 1:
            ours, peer = [], []  # that was the warm-up
    return [Result("cell to first 200", "s", ours, f"{BARE} started", peer, budget=0.5)]


def imports(session: Session, effort: Effort) -> list[Result]:
    """What an import adds to a process that does nothing else (with a bare shell: %load_ext)."""
    shell = (
        "from IPython.core.interactiveshell import InteractiveShell as S\n"
        "from traitlets.config import Config\n"
        "c = Config(); c.HistoryManager.enabled = False; s = S.instance(config=c)\n"
    )
    programs = {
        "nothing": "pass",
        "json": "import json",
        "httpx": "import httpx",
        "ours": "import fal_notebook",
        "deploy": "import fal_notebook.deploying",
        "shell": shell,
        "load_ext": shell + "s.run_line_magic('load_ext', 'fal_notebook')",
    }
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(effort.starts + 1):
        for name, program in programs.items():
            times[name].append(_process_ms(program))

    def added(name: str, base: str = "nothing") -> list[float]:
        pairs = list(zip(times[name], times[base], strict=True))[1:]
        return [max(0.0, a - b) for a, b in pairs]

    httpx = added("httpx")
    rows = [
        Result("import fal_notebook", "ms", added("ours"), "import json", added("json"), 150),
        Result("import fal_notebook.deploying", "ms", added("deploy"), "import httpx", httpx),
        Result("%load_ext fal_notebook", "ms", added("load_ext", "shell"), "import httpx", httpx),
    ]
    return [replace(row, difference=True) for row in rows]


def idle(session: Session, effort: Effort) -> list[Result]:
    """Memory and CPU of a gateway that nobody asks anything, and memory of an idle runner."""
    name = session.new_name()
    session.deploy(name, "min_concurrency=1")
    _, runner = session.runner(name)
    first_200(session.target(name))
    with bare() as (_, peer):
        processes = (session.gateway, peer)
        before = [_cpu(process) for process in processes]
        time.sleep(effort.idle_seconds)
        used = [_cpu(p) - b for p, b in zip(processes, before, strict=True)]
        ours, theirs = ([100 * seconds / effort.idle_seconds] for seconds in used)
        rows = [
            Result("idle gateway, RSS", "MB", [_rss(session.gateway)], BARE, [_rss(peer)], 90),
            Result("idle gateway, CPU", "% of a core", ours, BARE, theirs),
            Result("idle runner, PSS", "MB", [_pss(runner)], BARE, [_pss(peer)]),
        ]
    session[name].delete()
    return rows


def overhead(session: Session, effort: Effort) -> list[Result]:
    """Median latency at one connection: through the gateway minus to the runner directly."""
    name = session.new_name()
    session.deploy(name, "min_concurrency=1", "async def")
    direct, _ = session.runner(name)
    with ExitStack() as stack:
        targets = {"direct": direct, "gateway": session.target(name)}
        if effort.nginx:
            targets["nginx"] = stack.enter_context(nginx(direct))
        found = latencies(targets, effort)
    session[name].delete()
    through = minus(found["gateway"], found["direct"])
    peer = minus(found["nginx"], found["direct"]) if effort.nginx else []
    added = Result("gateway overhead, 1 connection", "ms", through, "nginx", peer, budget=1)
    return [
        replace(added, difference=True),
        Result(
            "latency through gateway, 1 connection",
            "ms",
            found["gateway"],
            "runner alone",
            found["direct"],
        ),
    ]


def throughput(session: Session, effort: Effort) -> list[Result]:
    """Rate, latency and CPU at 32 connections: gateway and one runner against bare."""
    rows = []
    with bare() as (sync_target, peer):
        targets = {"def": sync_target, "async def": Target(sync_target.address, "/async", BODY)}
        for keyword, target in targets.items():
            name = session.new_name()
            options = f"max_concurrency=1 min_concurrency=1 max_multiplexing={CONNECTIONS}"
            session.deploy(name, options, keyword)
            ours = [session.gateway, session.runner(name)[1]]
            sides = [(session.target(name), ours), (target, [peer])]
            rows += _throughput(keyword, sides, effort)
            session[name].delete()
    return rows


def scale(session: Session, effort: Effort) -> list[Result]:
    """From one runner to eight that are ready; against seven more bare processes."""
    ours, peer = [], []
    for _ in range(effort.rounds):
        name = session.new_name()
        handle = session.deploy(name, "min_concurrency=1 max_concurrency=8")
        started = time.perf_counter()
        handle.scale(min_concurrency=8)
        until(partial(_are_ready, session, name, 8))
        ours.append((time.perf_counter() - started) * 1e3)
        handle.delete()
        peer.append(_bare_start(7) * 1e3)
    return [Result("scale 1 → 8 runners", "ms", ours, f"7 × {BARE} started", peer, budget=1500)]


def from_zero(session: Session, effort: Effort) -> list[Result]:
    """A request to an app that is scaled to zero: fork from the zygote, load, answer."""
    name = session.new_name()
    handle = session.deploy(name)
    first_200(session.target(name))  # a runner that never had a request stays for 10 s
    handle.scale(keep_alive=0)
    ours, peer = [], []
    for _ in range(effort.rounds):
        until(lambda: handle.status()["runners"] == 0)
        started = time.perf_counter()
        first_200(session.target(name))
        ours.append((time.perf_counter() - started) * 1e3)
        peer.append(_bare_start() * 1e3)
    handle.delete()
    return [Result("scaled to zero, to its 200", "ms", ours, f"{BARE} started", peer)]


ROWS: dict[str, Callable[[Session, Effort], list[Result]]] = {
    "cell": cell_to_200,
    "import": imports,
    "idle": idle,
    "overhead": overhead,
    "throughput": throughput,
    "scale": scale,
    "zero": from_zero,
}


# --- parts of rows ---------------------------------------------------------------------------
def _bare_start(count: int = 1) -> float:
    started = time.perf_counter()
    with bare(count):
        return time.perf_counter() - started


def _are_ready(session: Session, name: str, count: int) -> bool:
    return session.ready(name) == count


def _process_ms(program: str) -> float:
    started = time.perf_counter()
    # From another folder: -c puts the present one in front of what is installed.
    command = [sys.executable, "-c", program]
    quiet = subprocess.DEVNULL
    subprocess.run(command, check=True, stdout=quiet, cwd="/", start_new_session=True)
    return (time.perf_counter() - started) * 1e3


def latencies(targets: dict[str, Target], effort: Effort) -> dict[str, list[float]]:
    """Return the median latency in ms of each target, round by round, in turn."""
    clients = {name: Client(target) for name, target in targets.items()}
    found: dict[str, list[float]] = {name: [] for name in targets}
    for client in clients.values():
        client.latencies(effort.requests // 2)
    for _ in range(effort.rounds):
        for name, client in clients.items():
            found[name].append(median(client.latencies(effort.requests)) * 1e3)
    for client in clients.values():
        client.close()
    return found


def minus(some: list[float], others: list[float]) -> list[float]:
    return [a - b for a, b in zip(some, others, strict=True)]


def _throughput(
    keyword: str, sides: list[tuple[Target, list[psutil.Process]]], effort: Effort
) -> list[Result]:
    for target, _ in sides:
        load(target, CONNECTIONS, min(1.0, effort.seconds), effort.wrk)
    rounds = range(max(1, effort.rounds - 2))
    taken = [[_loaded(*side, effort) for side in sides] for _ in rounds]
    label = f"{keyword}, {CONNECTIONS} connections"
    named = zip(("req/s", "ms", "ms", "µs"), ("", ", p50", ", p99", ", CPU a request"), strict=True)
    return [
        Result(
            f"{label}{what}",
            unit,
            [ours[n] for ours, _ in taken],
            BARE,
            [theirs[n] for _, theirs in taken],
            more_is_better=unit == "req/s",
        )
        for n, (unit, what) in enumerate(named)
    ]


def _loaded(
    target: Target, processes: list[psutil.Process], effort: Effort
) -> tuple[float, float, float, float]:
    """Return requests per second, p50 and p99 in ms, and CPU time in µs that a request took."""
    before = sum(map(_cpu, processes))
    started = time.perf_counter()
    one = load(target, CONNECTIONS, effort.seconds, effort.wrk)
    requests = one.rate * (time.perf_counter() - started)
    used = sum(map(_cpu, processes)) - before
    return one.rate, one.p50, one.p99, used / requests * 1e6


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _rss(process: psutil.Process) -> float:
    return float(process.memory_info().rss) / 1e6


def _pss(process: psutil.Process) -> float:
    """Return memory with shared pages divided among those who share them (Linux; else RSS)."""
    full = process.memory_full_info()
    return float(getattr(full, "pss", full.rss)) / 1e6
