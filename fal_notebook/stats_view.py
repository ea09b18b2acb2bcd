"""How the requests of an app over time look: a row per endpoint, and plots: `%fal stats`."""

from __future__ import annotations

import html
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fal_notebook.display import Table
from fal_notebook.exceptions import NotFoundError
from fal_notebook.handle import Handle
from fal_notebook.sparkline import sparkline

# What can be asked for: how long ago it begins, and how long a column is (seconds).
WINDOWS = {
    "1h": (3600, 60),
    "24h": (24 * 3600, 1800),
    "7d": (7 * 24 * 3600, 3 * 3600),
    "30d": (30 * 24 * 3600, 12 * 3600),
}
_COLUMNS = ("endpoint", "requests", "4xx", "5xx", "p50", "p95", "p99")


@dataclass(frozen=True)
class StatsView:
    """Figures as a table, and what is plotted: name, line of bars, and its highest value."""

    table: Table
    plots: list[tuple[str, str, str]]
    about: str

    def __repr__(self) -> str:
        if not self.plots:
            return repr(self.table)
        lines = [f"{name:>8} {bars} up to {most}" for name, bars, most in self.plots]
        return "\n".join([repr(self.table), "", *lines, self.about])

    def _repr_html_(self) -> str:
        if not self.plots:
            return self.table._repr_html_()
        plots = [f"{name:>8} |{bars}| up to {most}" for name, bars, most in self.plots]
        text = html.escape("\n".join([*plots, self.about]))
        return f"<div>{self.table._repr_html_()}<pre>{text}</pre></div>"


def of(handle: Handle, since: str = "1h", endpoint: str = "") -> StatsView:
    """Return what became of the requests of an app, or of one endpoint.

    Parameters
    ----------
    since : str
        One of `WINDOWS`.

    Raises
    ------
    NotFoundError
        When no request of the endpoint was answered in that time.
    """
    seconds, step = WINDOWS[since]
    found = handle.stats(seconds, step, endpoint)
    nothing = f"no request of {endpoint or handle.name} was answered in the last {since}"
    if endpoint and not found["requests"]:
        known = [each["endpoint"] for each in handle.stats(seconds, step)["endpoints"]]
        raise NotFoundError(f"{nothing}; {handle.name} answered {', '.join(known) or 'nothing'}")
    rows = [_row(each["endpoint"], each) for each in found["endpoints"]]
    rows += [_row("all", found)] if len(rows) > 1 else []
    return StatsView(Table(_COLUMNS, rows, nothing), _plots(found), _about(found))


def _row(name: str, told: Mapping[str, Any]) -> tuple[Any, ...]:
    quantiles = (_seconds(told[f"p{part}"]) for part in (50, 95, 99))
    return name, told["requests"], told["errors"]["4xx"], told["errors"]["5xx"], *quantiles


def _plots(found: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    step, points = found["step"], {point["at"]: point for point in found["points"]}
    if not points:
        return []
    begin = int(found["since"] // step * step)
    times = range(begin, int(found["until"]) + 1, step)
    requests = [points[at]["requests"] if at in points else 0 for at in times]
    errors = [sum(points[at]["errors"].values()) if at in points else 0 for at in times]
    slow = [points[at]["p95"] if at in points else 0.0 for at in times]
    plots = [("requests", sparkline(requests), f"{max(requests)}")]
    if any(errors):
        plots.append(("errors", sparkline(errors), f"{max(errors)}"))
    return [*plots, ("p95", sparkline(slow), _seconds(max(slow)))]


def _about(found: Mapping[str, Any]) -> str:
    since = time.strftime("%F %T", time.localtime(found["since"]))
    return f"since {since}; a column is {_length(found['step'])}"


def _length(seconds: float) -> str:
    return f"{seconds // 3600} h" if seconds >= 3600 else f"{seconds // 60} min"


def _seconds(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"
