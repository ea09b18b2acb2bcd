"""CPU and memory of containers: the last reading at once, a new one in the background."""

from __future__ import annotations

import contextlib
import time
from concurrent.futures import Executor
from typing import Any

from fal_notebook.backends.engine import Engine
from fal_notebook.exceptions import BuildError

# A reading that is not older (seconds) is not taken again.
FRESH = 1.0


class Usage:
    """Readings of containers that somebody asks for; nobody asks for those of others."""

    def __init__(self, engine: Engine, threads: Executor) -> None:
        self._engine = engine
        self._threads = threads
        self._readings: dict[str, dict[str, float]] = {}
        self._asked: dict[str, float] = {}
        self._ticks: dict[str, tuple[float, float]] = {}

    def of(self, container: str) -> dict[str, float]:
        """Return the last reading, empty before the first."""
        if time.monotonic() - self._asked.get(container, 0.0) > FRESH:
            self._asked[container] = time.monotonic()
            with contextlib.suppress(RuntimeError):  # it is being closed
                self._threads.submit(self._read, container)
        return self._readings.get(container, {})

    def _read(self, container: str) -> None:
        with contextlib.suppress(BuildError, KeyError):
            now, found = time.monotonic(), self._engine.usage(container)
            used = found["cpu_stats"]["cpu_usage"]["total_usage"] / 1e9
            before = self._ticks.get(container, (now, used))
            self._ticks[container] = now, used
            percent = 100 * (used - before[1]) / (now - before[0]) if now > before[0] else 0.0
            self._readings[container] = {
                "cpu_percent": percent,
                "memory_bytes": _memory(found["memory_stats"]),
            }

    def forget(self, container: str) -> None:
        """Drop what was read of a container that is gone."""
        for readings in (self._readings, self._asked, self._ticks):
            readings.pop(container, None)


def _memory(stats: dict[str, Any]) -> float:
    """Return what a container uses without the file cache, as ``docker stats`` shows it."""
    cache = stats["stats"].get("total_inactive_file", stats["stats"].get("inactive_file", 0))
    return float(stats["usage"] - cache)
