"""How costs and cold starts look: billed seconds per state with money, and parts of starts."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from fal_notebook.display import Table

_PARTS = ("queued", "build", "start", "setup", "first_byte")


def cost_table(cost: Mapping[str, Any]) -> Table:
    """Return one row per state of an app's machine types and revisions, and the sum."""
    rows = cost["billed"]
    priced = any(row["money"] is not None for row in rows)
    of_one = any(row["revision"] is not None for row in rows)
    shown = [
        (
            row["app"],
            *([row["revision"]] if of_one else []),
            row["machine_type"],
            row["state"],
            *_amounts(row["seconds"], row["money"], priced),
        )
        for row in rows
    ]
    columns = ["app", *(["revision"] if of_one else []), "machine", "state", "billed"]
    if rows:
        blank = [""] * (len(columns) - 3)
        shown.append(("all", *blank, f"since {cost['since']}", *_sum(rows, priced)))
    return Table([*columns, *(["cost"] if priced else [])], shown, _nothing(cost["since"]))


def _sum(rows: Sequence[Mapping[str, Any]], priced: bool) -> tuple[str, ...]:
    """Return the sums; money says of what it has no price."""
    unpriced = sorted({row["machine_type"] for row in rows if row["money"] is None})
    seconds = sum(row["seconds"] for row in rows)
    *told, last = _amounts(seconds, sum(row["money"] or 0.0 for row in rows), priced)
    return (*told, f"{last} without {', '.join(unpriced)}" if priced and unpriced else last)


def _amounts(seconds: float, money: float | None, priced: bool) -> tuple[str, ...]:
    told = "no price" if money is None else f"{money:.4f}"
    return (f"{seconds:.1f} s", *([told] if priced else []))


def _nothing(since: str) -> str:
    return f"nothing was billed since {since} (UTC): no runner was up"


def starts_table(starts: Mapping[str, Any]) -> Table:
    """Return one row per start of a runner, and the medians."""
    rows = [
        (
            start["runner"],
            time.strftime("%F %T", time.localtime(start["at"])),
            start["revision"],
            start["machine_type"],
            *_seconds([*_parts(start), _together(start)]),
        )
        for start in starts["starts"]
    ]
    if rows:
        together = median(_together(start) for start in starts["starts"])
        medians = [*_parts(starts["median"]), together]
        rows.append(("median", "", "", "", *_seconds(medians)))
    columns = ("runner", "started", "revision", "machine", *_PARTS, "together")
    names = [name.replace("_", " ") for name in columns]
    return Table(names, rows, "no runner of the app has come up yet")


def _parts(parts: Mapping[str, float | None]) -> list[float | None]:
    return [parts[part] for part in _PARTS]


def _together(parts: Mapping[str, float | None]) -> float:
    return sum(value or 0.0 for value in _parts(parts))


def _seconds(values: Sequence[float | None]) -> list[str]:
    return ["" if value is None else f"{value:.3f} s" for value in values]
