"""Whether a series of samples grows: a robust slope over what follows the warm-up; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

# More points than that say nothing more of a slope, and each is compared with every other.
POINTS = 240


@dataclass(frozen=True)
class Growth:
    """What became of one figure: its median at first and at last, and what its trend added."""

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
        Figures by name, one of them the time in seconds (``at``). A figure that a sample lacks,
        or that no limit names, is not judged there.
    limits : mapping
        By how much a figure may grow from the warm-up to the end, by the beginning of its name.
    warm_up : float
        The time before which nothing counts.
    """
    counted = [sample for sample in samples if sample["at"] >= warm_up]
    names = [name for name in counted[0] if name in counted[-1] and name != "at"]
    found = []
    for name in names:
        limit = next((limits[part] for part in limits if name.startswith(part)), None)
        series = [(sample["at"], sample[name]) for sample in counted if name in sample]
        if limit is not None and len(series) > 2:
            found.append(_growth(name, series, limit))
    return found


def _growth(name: str, series: Sequence[tuple[float, float]], limit: float) -> Growth:
    part = max(1, len(series) // 10)
    first, last = (median(value for _, value in end) for end in (series[:part], series[-part:]))
    grown = slope(series) * (series[-1][0] - series[0][0])
    return Growth(name, first, last, grown, limit)


def slope(series: Sequence[tuple[float, float]]) -> float:
    """Return the median of the slopes between all pairs of points (Theil and Sen).

    It follows the trend of most points, so neither a peak nor a saw's teeth move it.
    """
    points = series[:: -(-len(series) // POINTS)]
    return median(
        (later[1] - sooner[1]) / (later[0] - sooner[0])
        for index, sooner in enumerate(points)
        for later in points[index + 1 :]
        if later[0] > sooner[0]
    )
