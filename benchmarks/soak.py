"""Mixed load on a real gateway for a long time: nothing may grow, and no answer be wrong.

``python benchmarks/soak.py [--seconds 1800]`` prints how memory, descriptors, threads, processes
and files have changed, and exits with 1 when one of them has grown or an answer was wrong.

What is meant to grow is kept small or left out: results of the queue are forgotten after 10 s; of
each revision its payload stays, and of each runner its log, for a week, which are not counted as
files; of ten minutes each app's load is kept as samples, at most 6,000.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

import report
from gauging import Gauge, Sample, sample
from growth import Growth, judge
from mixed_load import APPS, MixedLoad
from session import Session, session, until

RESULTS_KEPT = 10
# A deploy follows the one before after so many seconds.
DEPLOY_PERIOD = 5.0
# What the gateway keeps of an app's load in ten minutes (MB, seconds).
SAMPLES, SAMPLED = 0.7, 600.0
# Connections of the load come and go with what else the machine does; at rest there are none.
CONNECTIONS = 20
# Threads for work that blocks come as they are needed and stay: asyncio's default at most.
POOL = (os.cpu_count() or 1) + 4


def main() -> int:
    """Run the load and judge what became of the gateway; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1800, help="how long (1800)")
    seconds = parser.parse_args().seconds
    os.environ["FAL_NOTEBOOK_RESULTS_KEPT"] = str(RESULTS_KEPT)
    with session() as here:
        before = _at_rest(here)
        load = MixedLoad(here)
        with Gauge(here) as gauge, load:
            _deploy_for(seconds, load)
        load.delete_all()
        after = _at_rest(here)
    trends = judge(gauge.samples, limits(seconds), warm_up(seconds))
    left = [_left(name, before, after, limit) for name, limit in limits_at_rest(seconds).items()]
    return _tell(load, [*trends, *left], seconds)


def warm_up(seconds: float) -> float:
    """Return when to begin to judge: pools, caches and the journal have their size by then."""
    return min(SAMPLED, seconds / 3)


def limits(seconds: float) -> dict[str, float]:
    """Return by how much figures may grow after the warm-up, by the beginning of their names."""
    return {
        "gateway, memory": 6 + _sampled(seconds) - _sampled(warm_up(seconds)),
        "gateway, descriptors": CONNECTIONS,
        "gateway, threads": POOL,
        "processes": 2,
        "files": 6,
        "state": 8,
        "sockets": 2,
        "zygote": 6,
        "keeper": 2,
        "runner": 6,
        "below runner": 6,
    }


def limits_at_rest(seconds: float) -> dict[str, float]:
    """Return by how much figures may have grown when all apps are deleted again.

    Pools, caches and the journal get their size meanwhile; what Python has freed it keeps.
    """
    return {
        "gateway, memory": 8 + _sampled(seconds),
        "gateway, descriptors": 3,
        "gateway, threads": POOL,
        "processes": 0,
        "files": 3,
        "state": 20,
        "sockets": 0,
    }


def _sampled(seconds: float) -> float:
    """Return what the gateway keeps of the apps' loads after so long (MB)."""
    return min(SAMPLED, seconds) / SAMPLED * SAMPLES * APPS


def _deploy_for(seconds: float, load: MixedLoad) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(DEPLOY_PERIOD, left))
        load.deploy()


def _at_rest(here: Session) -> Sample:
    """Return what the gateway takes when no runner is left and this client holds no connection."""
    from fal_notebook import sync
    from fal_notebook.handle import shared_client

    seen = list[Sample]()
    sync.wait(shared_client().close())

    def settled() -> bool:
        seen.append(sample(here))
        time.sleep(0.2)
        return len(seen) > 10 and not any("keeper" in name for name in seen[-1])

    until(settled, 60)
    return seen[-1]


def _left(name: str, before: Sample, after: Sample, limit: float) -> Growth:
    first, last = before[name], after[name]
    return Growth(f"{name}, at rest", first, last, last - first, limit)


def _tell(load: MixedLoad, figures: list[Growth], seconds: float) -> int:
    """Print the table and what was answered; return the exit status."""
    rows = [["figure", "at first", "at last", "grown by", "may grow by", ""]]
    for f in figures:
        verdict = "TOO MUCH" if f.too_much else ""
        numbers = [f"{n:.1f}" for n in (f.first, f.last, f.grown, f.limit)]
        rows.append([f.name, *numbers, verdict])
    print(report.aligned(rows))
    print(f"{seconds:g} s:", ", ".join(f"{n:,} {kind}" for kind, n in sorted(load.done.items())))
    grown = [f.name for f in figures if f.too_much]
    print(f"{len(load.wrong)} wrong answers; grown: {', '.join(grown) or 'nothing'}")
    if load.wrong:
        print(load.told())
    return 1 if grown or load.wrong else 0


if __name__ == "__main__":
    try:
        status = main()
    except KeyboardInterrupt:
        print("\nInterrupted; nothing is left running.", file=sys.stderr)
        status = 130
    sys.stdout.flush()
    os._exit(status)  # threads of the shell have nothing to finish
