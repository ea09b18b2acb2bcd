"""How a simulation looks: figures, and runners and waiting requests over time."""

from __future__ import annotations

import html
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from fal_notebook.gateway.simulate import Simulation
from fal_notebook.sparkline import sparkline

_COLUMNS = 72
_WIDTH, _HEIGHT = 640, 90


@dataclass(frozen=True)
class SimulationView:
    """A simulation as text, and as HTML with plots; `assumed` says of what it was made."""

    result: Simulation
    assumed: str

    def __repr__(self) -> str:
        plots = [
            f"{name:>8} {sparkline(_over_time(self.result.at, values))} up to {max(values)}"
            for name, values in self._series()
        ]
        return "\n".join([*self._figures(), *plots])

    def _repr_html_(self) -> str:
        figures = "<br>".join(html.escape(line) for line in self._figures())
        plots = [
            f"<div>{name}, up to {max(values)}</div>{_svg(self.result.at, values)}"
            for name, values in self._series()
        ]
        return f"<div>{figures}{''.join(plots)}</div>"

    def _series(self) -> list[tuple[str, Sequence[int]]]:
        result = self.result
        return [("runners", result.runners), ("busy", result.in_flight), ("waiting", result.queued)]

    def _figures(self) -> list[str]:
        result, waits = self.result, sorted(self.result.waits)
        billed = ", ".join(f"{state} {seconds:.1f} s" for state, seconds in result.billed.items())
        lines = [
            self.assumed,
            f"requests {len(waits)}: waited {_at(waits, 0.5):.3f} s in the median, "
            f"{_at(waits, 0.99):.3f} s at 99 %, {waits[-1] if waits else 0:.3f} s at most; "
            f"{result.cold_starts} for a runner to start",
            f"runners started {result.started}; billed {billed}",
        ]
        if result.unserved:
            lines.append(f"never served: {result.unserved}, for no runner may start")
        return lines


def _at(values: Sequence[float], part: float) -> float:
    """Return the value below which this part of the sorted values is."""
    return values[min(len(values) - 1, int(part * len(values)))] if values else 0.0


def _over_time(at: Sequence[float], values: Sequence[int]) -> list[int]:
    """Return the highest value of each of equal stretches of time."""
    begin, width = at[0], (at[-1] - at[0]) / _COLUMNS
    edges = [bisect_right(at, begin + width * n) for n in range(_COLUMNS + 1)]
    return [max(values[max(0, first - 1) : max(first, last)]) for first, last in pairwise(edges)]


def _svg(at: Sequence[float], values: Sequence[int]) -> str:
    heights = _over_time(at, values)
    most, step = max(*heights, 1), _WIDTH / len(heights)
    corners = [
        f"{step * (n + more):.1f},{_HEIGHT - value * (_HEIGHT - 2) / most:.1f}"
        for n, value in enumerate(heights)
        for more in (0, 1)
    ]
    points = " ".join([f"0,{_HEIGHT}", *corners, f"{_WIDTH},{_HEIGHT}"])
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" role="img">'
        f'<polygon points="{points}" fill="#1565c0" fill-opacity=".25" stroke="#1565c0"/></svg>'
    )
