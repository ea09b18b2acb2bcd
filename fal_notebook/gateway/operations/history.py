"""Ask what became of an app's requests over time, and forget what is old."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from fal_notebook.exceptions import OptionError
from fal_notebook.gateway import clock
from fal_notebook.gateway.gateway import Gateway
from fal_notebook.gateway.history import Counts, resolution, summed
from fal_notebook.gateway.operations.apps import find

# Asked for when no beginning is named (seconds).
LATELY = 3600.0

_WHICH = "owner = ? AND app = ? AND step = ? AND at >= ? AND at < ? AND ? IN ('', endpoint)"


@dataclass(frozen=True)
class Asked:
    """What is asked for: from when until when (unix seconds), steps (seconds), an endpoint."""

    since: float | None = None
    until: float | None = None
    step: float | None = None
    endpoint: str = ""


def history(gateway: Gateway, owner: str, name: str, asked: Asked) -> dict[str, Any]:
    """Return requests, errors by class and quantiles of latency (s) of an app or one endpoint.

    By default those of the last hour. They are summed up, then for each of the ``endpoints``, and
    as ``points`` of ``step`` seconds from ``at`` on; without requests there is no point. A step is
    as fine as it was kept, see `gateway.history`, or the next coarser one to what is asked for.

    Raises
    ------
    OptionError
        When the end is not behind the beginning.
    """
    find(gateway, owner, name)
    now = time.time()
    until = now if asked.until is None else asked.until
    since = until - LATELY if asked.since is None else asked.since
    if since >= until:
        raise OptionError(f"since={since:.0f} is not before until={until:.0f} (unix seconds)")
    gateway.tally.write()
    tier, step = resolution(since, until, now, asked.step)
    begin = tier.begin(since)
    which = _WHICH, owner, name, tier.step, begin, until, asked.endpoint
    of_endpoints = _counts(gateway.store.history("endpoint", *which))
    over_time = _counts(gateway.store.history(f"at / {step} * {step}", *which))
    for at, endpoint, counts in gateway.tally.unwritten(owner, name, tier):  # the disk is full
        if begin <= at < until and asked.endpoint in ("", endpoint):
            of_endpoints.setdefault(endpoint, Counts()).add(counts)
            over_time.setdefault(at // step * step, Counts()).add(counts)
    return {
        "since": begin,
        "until": until,
        "step": step,
        **summed(of_endpoints.values()).told(),
        "endpoints": [{"endpoint": each, **c.told()} for each, c in sorted(of_endpoints.items())],
        "points": [{"at": at, **counts.told()} for at, counts in sorted(over_time.items())],
    }


def _counts(rows: list[tuple[Any, list[int]]]) -> dict[Any, Counts]:
    return {value: Counts(counts) for value, counts in rows}


def prune(gateway: Gateway) -> None:
    """Remove what has been kept for long enough."""
    gateway.tally.prune(time.time(), clock.now())
