"""Ask what became of an app's requests over time, and forget what is old."""

from __future__ import annotations

import time
from itertools import groupby
from typing import Any

from fal_notebook.exceptions import OptionError
from fal_notebook.gateway import clock
from fal_notebook.gateway.gateway import Gateway
from fal_notebook.gateway.history import Counts, resolution, summed
from fal_notebook.gateway.operations.apps import find

# Asked for when no beginning is named (seconds).
LATELY = 3600.0


def history(
    gateway: Gateway,
    owner: str,
    name: str,
    since: float | None = None,
    until: float | None = None,
    step: float | None = None,
) -> dict[str, Any]:
    """Return requests, errors and latencies of an app from `since` to `until` (unix seconds).

    By default those of the last hour. ``total`` is of the whole app, ``endpoints`` of each; the
    ``points`` of both are of ``step`` seconds from ``at`` on, and those without requests left out.
    A step is as fine as it was kept, see `gateway.history`, or as the next coarser one to `step`.

    Raises
    ------
    OptionError
        When `since` is not before `until`.
    """
    find(gateway, owner, name)
    now = time.time()
    until = now if until is None else until
    since = until - LATELY if since is None else since
    if since >= until:
        raise OptionError(f"since={since:.0f} is not before until={until:.0f} (unix seconds)")
    gateway.tally.write()
    tier, wanted = resolution(since, until, now, step)
    begin = tier.begin(since)
    rows = gateway.store.history(owner, name, tier.step, begin, until, wanted)
    slots = [(endpoint, at, Counts(values)) for endpoint, at, values in rows]
    return {
        "since": begin,
        "until": until,
        "step": wanted,
        "total": _told([(at, counts) for _, at, counts in slots]),
        "endpoints": [
            {"endpoint": endpoint, **_told([(at, counts) for _, at, counts in those])}
            for endpoint, those in groupby(slots, lambda slot: slot[0])
        ],
    }


def _told(slots: list[tuple[int, Counts]]) -> dict[str, Any]:
    """Return the sum of all slots, and that of each time."""
    in_order = groupby(sorted(slots, key=lambda slot: slot[0]), lambda slot: slot[0])
    points = [(at, summed(counts for _, counts in those)) for at, those in in_order]
    told = [{"at": at, **counts.told()} for at, counts in points]
    return {**summed(counts for _, counts in points).told(), "points": told}


def prune(gateway: Gateway) -> None:
    """Remove what has been kept for long enough."""
    gateway.tally.prune(time.time(), clock.now())
