"""Which spans the gateway records of a request: none, unless a collector of traces is named.

`start` says which; `spans` does it, and is imported for nobody else.
"""

from __future__ import annotations

import contextlib
import logging
import os
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import Scope

    from fal_notebook.gateway.exchange import Exchange
    from fal_notebook.gateway.fleet import Fleet, Runner
    from fal_notebook.gateway.logs.redaction import Redaction
    from fal_notebook.gateway.queue.table import QueuedRequest

ENDPOINTS = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"

_LOG = logging.getLogger(__name__)
_NOTHING = contextlib.nullcontext()


class Trace:
    """What is recorded of one request: here, nothing."""

    def waited(self, since: float, runner: Runner) -> None:
        """Record that it has waited, from `since` (unix seconds) until now, for this runner."""

    def attempt(self, exchange: Exchange, runner: Runner) -> AbstractContextManager[None]:
        """Return what records the work of a runner, which is told of it; entered as it begins."""
        return _NOTHING

    def end(self, status: int, kind: str = "") -> None:
        """Record what the caller was answered; `kind` is the error's type, where it is ours."""


UNTRACED = Trace()


class Tracing:
    """What is recorded of the requests of a gateway: here, nothing."""

    def direct(self, app: Fleet, scope: Scope, path: bytes, request_id: str) -> Trace:
        """Return what records a direct request, which begins now."""
        return UNTRACED

    def submit(
        self, app: Fleet, scope: Scope, request: QueuedRequest
    ) -> AbstractContextManager[None]:
        """Return what records that a request is accepted; its attempts take part in that trace."""
        return _NOTHING

    def queued(self, app: Fleet, request: QueuedRequest) -> Trace:
        """Return what records the present attempt of a queued request."""
        return UNTRACED

    async def close(self) -> None:
        """Send what was recorded, unless that takes long."""


def start(redaction: Redaction) -> Tracing:
    """Return what records, by OpenTelemetry's own environment variables."""
    named = next((name for name in ENDPOINTS if os.environ.get(name)), None)
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if named is None or disabled or os.environ.get("OTEL_TRACES_EXPORTER") == "none":
        return Tracing()
    try:
        from fal_notebook.gateway.spans import Spans

        return Spans(redaction)
    except ImportError as error:
        _LOG.warning(
            "no traces are exported although %s is set, because %s: install the extra with "
            "pip install 'fal-notebook[otel]' and start the gateway again",
            *(named, error),
        )
    except ValueError as error:
        _LOG.warning("no traces are exported: %s; correct that variable OTEL_…", error)
    return Tracing()
