"""What became of an app's requests over time: counts that add up, at falling resolution; pure.

`tally` counts and `store` keeps. Every count is added to all tiers at once, so nothing has to be
made of anything later: what is old only goes.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from fal_notebook.gateway.metrics import LATENCY_BUCKETS

_MINUTE, _HOUR, _DAY = 60, 3600, 24 * 3600

# About as many points an answer has at most, unless its caller wants another step.
POINTS = 360
# Classes of status from 1xx on.
_CLASSES = 5


@dataclass(frozen=True)
class Tier:
    """Counts of `step` seconds each, kept for `kept` seconds."""

    step: int
    kept: int

    def begin(self, at: float) -> int:
        """Return when the step began in which a time (unix seconds) is."""
        return math.floor(at / self.step) * self.step

    def reaches(self, since: float, now: float) -> bool:
        """Say whether it has counts of that time; who asks may have looked at its clock before."""
        return now - since <= self.kept + self.step


TIERS = (Tier(10, _HOUR), Tier(_MINUTE, _DAY), Tier(10 * _MINUTE, 7 * _DAY), Tier(_HOUR, 30 * _DAY))


class Counts:
    """How many requests ended with which status, and how many took how long.

    Parameters
    ----------
    values : iterable of int, optional
        As `values` gives them.
    """

    SIZE = _CLASSES + len(LATENCY_BUCKETS) + 1

    def __init__(self, values: Iterable[int] = ()) -> None:
        self.values = list(values) or [0] * self.SIZE

    def count(self, status: int, seconds: float) -> None:
        """Add one request; without a status (0) its answer never began, which is a failure."""
        self.values[min(status // 100 or _CLASSES, _CLASSES) - 1] += 1
        self.values[_CLASSES + bisect_left(LATENCY_BUCKETS, seconds)] += 1

    def add(self, other: Counts) -> None:
        """Add the counts of another time or endpoint."""
        self.values = [mine + its for mine, its in zip(self.values, other.values, strict=True)]

    def told(self) -> dict[str, Any]:
        """Return what a person asks for: requests, errors by class, quantiles in seconds."""
        statuses, latency = self.values[:_CLASSES], self.values[_CLASSES:]
        errors = {"4xx": statuses[3], "5xx": statuses[4]}
        quantiles = {f"p{part}": quantile(latency, part / 100) for part in (50, 95, 99)}
        return {"requests": sum(statuses), "errors": errors, **quantiles}


def quantile(latency: Sequence[int], part: float) -> float | None:
    """Return the seconds within which this part of the requests ended, None without any.

    As Prometheus does it: even within a bucket, and what is above the last bound is that bound.
    """
    reached = list(accumulate(latency))
    wanted = part * reached[-1]
    if not wanted:
        return None
    number = bisect_left(reached, wanted)
    if number == len(LATENCY_BUCKETS):
        return LATENCY_BUCKETS[-1]
    lower = LATENCY_BUCKETS[number - 1] if number else 0.0
    more = (wanted - reached[number] + latency[number]) / latency[number]
    return lower + (LATENCY_BUCKETS[number] - lower) * more


def resolution(since: float, until: float, now: float, step: float | None) -> tuple[Tier, int]:
    """Return the step of an answer (seconds), and the tier that it is made of.

    The step is that of the finest tier that reaches back to `since`, or the next multiple of it to
    what is wanted; when nothing is wanted, one that makes about `POINTS` at most. Of the tiers that
    it can be made of, the coarsest has the fewest rows.
    """
    finest = next((tier for tier in TIERS if tier.reaches(since, now)), TIERS[-1]).step
    wanted = (until - since) // POINTS if step is None else step
    found = finest * max(1, math.ceil(wanted / finest))
    return next(tier for tier in reversed(TIERS) if found % tier.step == 0), found


def summed(counts: Iterable[Counts]) -> Counts:
    """Return the sum."""
    total = Counts()
    for each in counts:
        total.add(each)
    return total
