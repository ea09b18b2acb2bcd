"""Whether a series of samples grows: a robust slope, or a step, after the warm-up; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

# More points than that say nothing more of a slope, and each is compared with every other.
POINTS = 240
# So many samples at least are a level; of fewer, a third.
LEVEL = 12


@dataclass(frozen=True)
class Growth:
    """What became of one figure: its median at first and at last, and what trend or step added."""

    name: str
    first: float
    last: float
    grown: float
    limit: float

    @property
    def too_much(self) -> bool:
        """Whether it has grown by more than is allowed."""
        return self.grown > self.limit


def judge(
    samples: Sequence[Mapping[str, float]], limits: Mapping[str, float], warm_up: float
) -> list[Growth]:
    """Return how each figure that has a limit has grown.

    Parameters
    ----------
    samples : sequence
        Figures by name, one of them the time in seconds (``at``). A figure that no limit names,
        or that is missing in half of the samples, is not judged.
    limits : mapping
        By how much a figure may grow from the warm-up to the end, by the beginning of its name.
    warm_up : float
        The time before which nothing counts.
    """
    counted = [sample for sample in samples if sample["at"] >= warm_up]
    names = dict.fromkeys(name for sample in counted for name in sample if name != "at")
    found = []
    for name in names:
        limit = next((limits[part] for part in limits if name.startswith(part)), None)
        series = [(sample["at"], sample[name]) for sample in counted if name in sample]
        if limit is not None and len(series) > max(2, len(counted) / 2):
            found.append(_growth(name, series, limit))
    return found


def _growth(name: str, series: Sequence[tuple[float, float]], limit: float) -> Growth:
    part = max(1, len(series) // 10)
    first, last = (median(value for _, value in end) for end in (series[:part], series[-part:]))
    trend = slope(series) * (series[-1][0] - series[0][0])
    return Growth(name, first, last, max(trend, step(series)), limit)


def slope(series: Sequence[tuple[float, float]]) -> float:
    """Return the median of the slopes between all pairs of points (Theil and Sen).

    It follows the trend of most points, so neither a peak nor a saw's teeth move it.
    """
    points = _thinned(series)
    return median(
        (later[1] - sooner[1]) / (later[0] - sooner[0])
        for index, sooner in enumerate(points)
        for later in points[index + 1 :]
        if later[0] > sooner[0]
    )


def step(series: Sequence[tuple[float, float]]) -> float:
    """Return the highest step that was never undone: a level that came after another one.

    Three quarters of what follows it are so much above three quarters of what was before it, so
    neither a peak nor a saw's teeth are one, and of noise that much less than nothing is left.
    """
    values = [value for _, value in _thinned(series)]
    least = max(len(values) // 10, min(LEVEL, len(values) // 3), 1)
    return max(
        sorted(values[at:])[(len(values) - at) // 4] - sorted(values[:at])[-1 - at // 4]
        for at in range(least, len(values) - least + 1)
    )


def _thinned(series: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    return series[:: -(-len(series) // POINTS)]
