"""Prometheus metrics under fal's names: the counters that requests add to, and the text."""

from __future__ import annotations

from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.registry import Collector

# Seconds; a request may take an hour.
LATENCY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 3600)


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
    """All metrics of a gateway."""

    def __init__(self) -> None:
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

    def for_app(self, app: str) -> AppMetrics:
        """Return the counters of ``owner/name``."""
        return AppMetrics(self, app)

    def add(self, collector: Collector) -> None:
        """Show what this collector finds too."""
        self._registry.register(collector)

    def render(self) -> bytes:
        """Return the text exposition format."""
        text = generate_latest(self._registry)
        for name in (b"received", b"completed"):  # fal's own names have no suffix
            text = text.replace(b"fal_app_requests_%b_total" % name, b"fal_app_requests_%b" % name)
        return text
