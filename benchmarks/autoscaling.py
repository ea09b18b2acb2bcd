"""Rows of the autoscaler: one decision, a turn over many apps, the first request, a simulation."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator

from report import Result
from rows import Effort
from session import Session

from fal_notebook.gateway.autoscaler import Observed, Runner, Scaling, arranged, decide
from fal_notebook.gateway.controller import Controller
from fal_notebook.gateway.fleet import Fleet
from fal_notebook.gateway.fleet import Runner as FleetRunner
from fal_notebook.gateway.metrics import Metrics
from fal_notebook.gateway.simulate import Request, Start, simulate
from fal_notebook.gateway.store import Revision, RunnerRow

RUNNERS = 100
# So many runners has each app of the fleets below.
EACH = 10
SCALING = Scaling(min_concurrency=EACH, max_concurrency=2 * EACH)


def decision(session: Session, effort: Effort) -> list[Result]:
    """One decision about an app with many runners, some of them at work."""
    runners = [
        Runner(str(n), "RUNNING" if n % 2 else "IDLE", n % 2, 0.0, 1000.0) for n in range(RUNNERS)
    ]
    scaling = Scaling(max_concurrency=2 * RUNNERS, keep_alive=60)
    seen = Observed(arranged(runners))
    took = [_each(lambda: decide(scaling, seen, 1001.0), effort) for _ in range(effort.rounds)]
    # What a gateway does before, each time: it keeps them in another form.
    before = [_each(lambda: arranged(runners), effort) for _ in range(effort.rounds)]
    return [
        Result(f"decide, {RUNNERS} runners", "µs", took, budget=20),
        Result(f"arrange {RUNNERS} runners for it", "µs", before),
    ]


def _each(call: Callable[[], object], effort: Effort) -> float:
    started = time.perf_counter()
    for _ in range(effort.requests):
        call()
    return (time.perf_counter() - started) / effort.requests * 1e6


def turns(session: Session, effort: Effort) -> list[Result]:
    """A decision about every app in one turn of the loop, for ever more apps."""
    sizes = (100, 1_000, 10_000) if effort.rounds > 1 else (100,)
    found = {apps: asyncio.run(_turns(apps, effort.rounds)) for apps in sizes}
    return [
        Result(f"controller, {apps:,} apps of {EACH} runners", "ms", took, budget=budget)
        for (apps, took), budget in zip(found.items(), (None, 20, None), strict=False)
    ]


async def _turns(apps: int, rounds: int) -> list[float]:
    controller = Controller(_unwanted, _unwanted)
    fleets = [_fleet(number, controller) for number in range(apps)]
    await asyncio.sleep(0.01)
    took = []
    for _ in range(rounds):
        for fleet in fleets:
            controller.poke(fleet)
        started = time.perf_counter()
        await asyncio.sleep(0)
        took.append((time.perf_counter() - started) * 1e3)
    controller.close()
    return took


def first_request(session: Session, effort: Effort) -> list[Result]:
    """From the first request of an app at zero until the controller starts a runner for it."""
    took = asyncio.run(_first_requests(effort))
    return [Result("first request at zero, to the start", "ms", took, budget=5)]


async def _first_requests(effort: Effort) -> list[float]:
    asked: asyncio.Future[float]

    def start(fleet: Fleet) -> FleetRunner:
        asked.set_result(time.perf_counter())
        return _runner(fleet, "PENDING", 0)

    controller, took = Controller(start, _unwanted), []
    for number in range(effort.rounds):
        fleet = _fleet(number, controller, runners=0)
        fleet.scaling = Scaling()
        await asyncio.sleep(0.01)
        asked = asyncio.get_running_loop().create_future()
        started = time.perf_counter()
        waiter = fleet.enqueue()
        took.append((await asked - started) * 1e3)
        fleet.leave(waiter)
    controller.close()
    return took


def simulation(session: Session, effort: Effort) -> list[Result]:
    """A million requests of varying load through the simulation."""
    requests = 1_000_000 if effort.rounds > 1 else 10_000
    scaling = Scaling(max_concurrency=RUNNERS, max_multiplexing=2)
    started = time.perf_counter()
    simulate(_trace(requests), scaling, Start(0.1, 1.0))
    took = [time.perf_counter() - started]
    return [Result(f"simulate {requests:,} requests", "s", took, budget=20)]


def _trace(requests: int) -> Iterator[Request]:
    chance, at = random.Random(1), 0.0
    for number in range(requests):
        rate = 500 if number // 50_000 % 2 else 100
        at += chance.expovariate(rate)
        yield Request(at, chance.expovariate(5))


ROWS: dict[str, Callable[[Session, Effort], list[Result]]] = {
    "decide": decision,
    "controller": turns,
    "first": first_request,
    "simulate": simulation,
}


# --- fleets without processes ----------------------------------------------------------------
def _fleet(number: int, controller: Controller, runners: int = EACH) -> Fleet:
    metrics = Metrics().for_app(str(number))
    ignore: Callable[..., None] = lambda *_: None  # noqa: E731
    fleet = Fleet("owner", f"app-{number}", metrics, controller.poke, ignore, ignore)
    fleet.revision = Revision("r", "owner", fleet.name, 1, "ACTIVE", "", "", {}, {}, {}, {})
    fleet.scaling = SCALING
    for index in range(runners):
        runner = _runner(fleet, "IDLE", index)
        fleet.runners[runner.row.id] = runner
    return fleet


def _runner(fleet: Fleet, state: str, index: int) -> FleetRunner:
    row = RunnerRow(str(index), fleet.owner, fleet.name, "r", state, "", "XS")
    return FleetRunner(row, since=time.time(), last_request_at=time.time())


def _unwanted(*_: object) -> FleetRunner:
    raise AssertionError("these fleets have as many runners as they want")
