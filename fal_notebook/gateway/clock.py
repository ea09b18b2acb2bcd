"""The clock of decisions: unix seconds that go on evenly when the machine's clock is set anew."""

from __future__ import annotations

import time

_BEGAN = time.time() - time.monotonic()


def now() -> float:
    """Return the seconds; they are those of ``time.time()`` as the gateway started."""
    return _BEGAN + time.monotonic()
