"""Sends spans to the collector that the environment names, in a thread and within bounds."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from fal_notebook import __version__

# The gateway's end waits so long (seconds) for a collector to take what is left.
LAST_CALL = 2.0
# What is wrong with a collector is told so often (seconds).
COMPLAINT_PERIOD = 60.0


def start() -> TracerProvider:
    """Return what makes spans and has them sent (``OTEL_EXPORTER_OTLP_…``, ``OTEL_BSP_…``).

    They wait in a bounded line for a thread that sends them; what finds no room is dropped.

    Raises
    ------
    ValueError
        When one of OpenTelemetry's variables cannot be read.
    """
    logging.getLogger(OTLPSpanExporter.__module__).addFilter(_Seldom())
    provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


async def close(provider: TracerProvider) -> None:
    """Send what is left, as far as the collector takes it at once."""
    loop, done = asyncio.get_running_loop(), asyncio.Event()

    def shut_down() -> None:
        provider.shutdown()
        with contextlib.suppress(RuntimeError):  # nobody waits any more
            loop.call_soon_threadsafe(done.set)

    # A daemon, unlike threads of the loop: the process may end before it.
    threading.Thread(target=shut_down, daemon=True).start()
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(done.wait(), LAST_CALL)


class _Seldom(logging.Filter):
    """Lets one line a minute through, for each batch that is not taken has several."""

    _next = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether the line is told."""
        if record.created < self._next:
            return False
        self._next = record.created + COMPLAINT_PERIOD
        return True


def _resource() -> Resource:
    """Return who sends the spans: what the environment says, else this package."""
    told = Resource.create()
    if str(told.attributes.get("service.name", "")).startswith("unknown_service"):
        told = told.merge(Resource({"service.name": "fal-notebook"}))
    return told.merge(Resource({"service.version": __version__}))
