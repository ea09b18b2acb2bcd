"""Prometheus metrics under fal's names; counters on the hot path, gauges read when scraped."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily

if TYPE_CHECKING:
    from fal_notebook.gateway.fleet import Fleet

# Seconds; a request may take an hour.
LATENCY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 3600)

Stats = Callable[[dict[str, Any]], dict[str, float]]


class AppMetrics:
    """The counters of one app, looked up once so that a request only adds."""

    def __init__(self, metrics: Metrics, app: str) -> None:
        self.received = metrics.received.labels(app)
        self._completed = metrics.completed
        self._latency = metrics.latency.labels(app)
        self._app = app
        self._by_status: dict[int, Any] = {}

    def complete(self, status: int, seconds: float) -> None:
        """Count a finished request."""
        counter = self._by_status.get(status)
        if counter is None:
            counter = self._by_status[status] = self._completed.labels(self._app, str(status))
        counter.inc()
        self._latency.observe(seconds)


class Metrics:
    """All metrics of a gateway.

    Parameters
    ----------
    fleets : callable
        Gives the fleet of every app.
    stats : callable
        Gives CPU and memory of a runner's process.
    """

    def __init__(self, fleets: Callable[[], Iterable[Fleet]], stats: Stats) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        registry = self._registry
        self.received = Counter(
            "fal_app_requests_received", "Requests that came in.", ["app"], registry=registry
        )
        self.completed = Counter(
            "fal_app_requests_completed", "Requests answered.", ["app", "status"], registry=registry
        )
        self.latency = Histogram(
            "fal_app_request_latency",
            "Seconds from arrival to answer.",
            ["app"],
            registry=registry,
            buckets=LATENCY_BUCKETS,
        )
        self._fleets = fleets
        self._stats = stats
        registry.register(self)

    def for_app(self, app: str) -> AppMetrics:
        """Return the counters of ``owner/name``."""
        return AppMetrics(self, app)

    def render(self) -> bytes:
        """Return the text exposition format."""
        text = generate_latest(self._registry)
        for name in (b"received", b"completed"):  # fal's own names have no suffix
            text = text.replace(b"fal_app_requests_%b_total" % name, b"fal_app_requests_%b" % name)
        return text

    def describe(self) -> list[Any]:
        """Return nothing: gauges are found when they are collected."""
        return []

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Yield the gauges, read from the fleets now."""
        runners = GaugeMetricFamily(
            "fal_app_runners", "Runners.", labels=["app", "state", "machine_type"]
        )
        queue = GaugeMetricFamily("fal_app_queue_size", "Requests waiting.", labels=["app"])
        busy = GaugeMetricFamily(
            "fal_app_concurrent_requests", "Requests in flight.", labels=["app"]
        )
        cpu = GaugeMetricFamily(
            "fal_app_runner_cpu_usage_percent", "CPU of a runner.", labels=["app", "runner"]
        )
        memory = GaugeMetricFamily(
            "fal_app_runner_memory_usage_bytes", "Memory of a runner.", labels=["app", "runner"]
        )
        for fleet in self._fleets():
            app = f"{fleet.owner}/{fleet.name}"
            picture = fleet.picture()
            queue.add_metric([app], picture["queued"])
            busy.add_metric([app], picture["in_flight"])
            for (state, machine), number in _by_state(fleet).items():
                runners.add_metric([app, state, machine], number)
            for runner in fleet.runners.values():
                stats = self._stats(runner.row.process)
                if stats:
                    cpu.add_metric([app, runner.row.id], stats["cpu_percent"])
                    memory.add_metric([app, runner.row.id], stats["memory_bytes"])
        yield from (runners, queue, busy, cpu, memory)


def _by_state(fleet: Fleet) -> dict[tuple[str, str], int]:
    counts: dict[tuple[str, str], int] = {}
    for runner in fleet.runners.values():
        key = (runner.state, runner.row.machine_type)
        counts[key] = counts.get(key, 0) + 1
    return counts
