"""The clock of decisions: unix seconds that go on evenly when the machine's clock is set anew."""

from __future__ import annotations

import time

# Where there is one (Linux), a clock that goes on while the machine sleeps.
_EVEN = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_BEGAN = time.time() - time.clock_gettime(_EVEN)


def now() -> float:
    """Return the seconds; they are those of ``time.time()`` as the gateway started."""
    return _BEGAN + time.clock_gettime(_EVEN)


def ago(seconds: float) -> float:
    """Return the unix time that lies so far back by this clock and by the machine's.

    What is older may be removed: neither of the two, set wrong, makes it older than it is.
    """
    return min(now(), time.time()) - seconds
