"""Ask how the last runners of an app came up, and what took how long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from fal_notebook.gateway.gateway import Gateway
from fal_notebook.gateway.operations.apps import find
from fal_notebook.gateway.starts import Parts
from fal_notebook.gateway.store import Start


def starts(gateway: Gateway, owner: str, name: str) -> dict[str, Any]:
    """Return an app's last cold starts, the newest first, and the median of each part (seconds)."""
    find(gateway, owner, name)
    where = "owner = ? AND app = ? ORDER BY at DESC"
    found = gateway.store.select(Start, where, owner, name)
    return {"starts": [asdict(start) for start in found], "median": medians(found)}


def medians(starts: Sequence[Start]) -> dict[str, float | None]:
    """Return the median of each part, of those starts that have it."""
    had = {part: [getattr(start, part) for start in starts] for part in Parts._fields}
    known = {part: [value for value in had[part] if value is not None] for part in Parts._fields}
    return {part: median(values) if values else None for part, values in known.items()}
