"""Numbers as a row of bars of text."""

from __future__ import annotations

import math
from collections.abc import Sequence

_BARS = " ▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float]) -> str:
    """Return one bar per value; the highest is full, and whatever is above 0 can be seen."""
    most = max(values, default=0) or 1
    return "".join(_BARS[math.ceil(value * (len(_BARS) - 1) / most)] for value in values)
