"""Prometheus gauges under fal's names: runners and load, read from the fleets when scraped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from fal_notebook.gateway.fleet import Fleet
from fal_notebook.gateway.gpus import Gpus

Stats = Callable[[dict[str, Any]], dict[str, float]]

_GAUGES = {
    "fal_app_runners": ("Runners.", ("app", "state", "machine_type")),
    "fal_app_queue_size": ("Requests waiting.", ("app",)),
    "fal_app_concurrent_requests": ("Requests in flight.", ("app",)),
    "fal_app_runner_cpu_usage_percent": ("CPU of a runner.", ("app", "runner")),
    "fal_app_runner_memory_usage_bytes": ("Memory of a runner.", ("app", "runner")),
    "fal_notebook_gpus_total": ("GPUs of this machine.", ()),
    "fal_notebook_gpus_allotted": ("GPUs that runners hold.", ()),
}
_Sample = tuple[str, tuple[str, ...], float]


class Gauges(Collector):
    """Reads every fleet.

    Parameters
    ----------
    fleets : callable
        Gives the fleet of every app.
    stats : callable
        Gives CPU and memory of a runner's process.
    gpus : Gpus
        Those of this machine.
    """

    def __init__(self, fleets: Callable[[], Iterable[Fleet]], stats: Stats, gpus: Gpus) -> None:
        self._fleets = fleets
        self._stats = stats
        self._gpus = gpus

    def describe(self) -> list[Any]:
        """Return nothing: gauges are found when they are collected."""
        return []

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Return the gauges as they are now."""
        families = {
            name: GaugeMetricFamily(name, text, labels=labels)
            for name, (text, labels) in _GAUGES.items()
        }
        for name, labels, value in self._samples():
            families[name].add_metric(labels, value)
        return families.values()

    def _samples(self) -> Iterable[_Sample]:
        yield "fal_notebook_gpus_total", (), self._gpus.total
        yield "fal_notebook_gpus_allotted", (), self._gpus.total - len(self._gpus.free())
        for fleet in self._fleets():
            yield from _load(fleet)
            yield from self._processes(fleet)

    def _processes(self, fleet: Fleet) -> Iterable[_Sample]:
        for runner in fleet.runners.values():
            labels = _app(fleet), runner.row.id
            if stats := self._stats(runner.row.process):
                yield "fal_app_runner_cpu_usage_percent", labels, stats["cpu_percent"]
                yield "fal_app_runner_memory_usage_bytes", labels, stats["memory_bytes"]


def _load(fleet: Fleet) -> Iterable[_Sample]:
    app, sample = _app(fleet), fleet.sample()
    yield "fal_app_queue_size", (app,), sample.queued
    yield "fal_app_concurrent_requests", (app,), sample.in_flight
    kinds = Counter((runner.state, runner.row.machine_type) for runner in fleet.shown())
    for kind, number in kinds.items():
        yield "fal_app_runners", (app, *kind), number


def _app(fleet: Fleet) -> str:
    return f"{fleet.owner}/{fleet.name}"
