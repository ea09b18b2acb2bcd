"""What runners say at their own ``/metrics``: gathered when the gateway is asked for its."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from fal_notebook.gateway.fleet import Fleet
from fal_notebook.gateway.upstream import Pool, UpstreamError

# How long all runners, asked at once, may take (seconds), and how much is read of each (bytes).
TIMEOUT = 2.0
LARGEST = 1024 * 1024
# A longer line than this is none of a metric; the parser takes a square of its length.
LONGEST_LINE = 16 * 1024
# Names of the gateway's own metrics begin so; no runner may say anything under them.
OWN = ("fal_app_", "fal_notebook_")
UP = "fal_app_runner_metrics_up"


class Page(NamedTuple):
    """The metrics of one runner as text, "" of one that does not say them."""

    app: str
    runner: str
    text: str


async def scrape(fleets: Iterable[Fleet]) -> bytes:
    """Return the metrics of all runners that are ready, with the labels ``app`` and ``runner``."""
    found = [*_ready(fleets)]
    texts = await asyncio.gather(*(_text(address) for _, _, address in found))
    pages = [Page(app, runner, text) for (app, runner, _), text in zip(found, texts, strict=True)]
    return await asyncio.to_thread(render, pages) if pages else b""


def _ready(fleets: Iterable[Fleet]) -> Iterator[tuple[str, str, str]]:
    for fleet in fleets:
        for runner in fleet.runners.values():
            address = runner.row.process.get("metrics")
            if address and runner.row.state in ("IDLE", "DRAINING"):
                yield f"{fleet.owner}/{fleet.name}", runner.row.id, address


async def _text(address: str) -> str:
    pool = Pool(address, reuse=False)
    with contextlib.suppress(UpstreamError, asyncio.TimeoutError):
        page = await asyncio.wait_for(pool.get(b"/metrics", b"text/plain", LARGEST), TIMEOUT)
        return page.decode(errors="replace")
    return ""


def render(pages: Iterable[Page]) -> bytes:
    """Return the metrics of all pages as one, in the text format; who says none is not up."""
    registry = CollectorRegistry()
    registry.register(_Merged(pages))
    return generate_latest(registry)


class _Merged(Collector):
    """The families of all pages: one of a name, with the samples of every runner."""

    def __init__(self, pages: Iterable[Page]) -> None:
        self._pages = pages

    def describe(self) -> list[Metric]:
        """Return nothing: what there is is found when it is collected."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield each family; of those that share a name and not a type, the first kind."""
        families: dict[str, Metric] = {}
        up = GaugeMetricFamily(UP, "Whether the runner says its metrics.", labels=("app", "runner"))
        for page in self._pages:
            read = _families(page.text)
            up.add_metric((page.app, page.runner), float(bool(read)))
            for family in read:
                _add(families, family, page)
        yield from (up, *families.values())


def _families(text: str) -> list[Metric]:
    """Return what a page says, nothing of one that is malformed."""
    if max(map(len, text.splitlines()), default=0) > LONGEST_LINE:
        return []
    try:
        return [*text_string_to_metric_families(text)]
    except (ValueError, LookupError):
        return []


def _add(families: dict[str, Metric], family: Metric, page: Page) -> None:
    if family.name.startswith(OWN):
        return
    empty = Metric(family.name, family.documentation, family.type)
    merged = families.setdefault(family.name, empty)
    if merged.type == family.type:
        merged.samples += [_labelled(sample, page) for sample in family.samples]


def _labelled(sample: Sample, page: Page) -> Sample:
    """Return a sample with whose it is; labels of its own under these names are kept beside."""
    ours = {"app": page.app, "runner": page.runner}
    own = {f"exported_{n}" if n in ours else n: v for n, v in sample.labels.items()}
    return sample._replace(labels={**ours, **own})
