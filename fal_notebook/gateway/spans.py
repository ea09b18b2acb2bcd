"""Spans of requests for OpenTelemetry: request, queue wait, cold start, attempt.

Attributes are those of its HTTP conventions, and ours below ``fal.``. No query, header, body or
text of an error is among them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from fal_notebook import __version__
from fal_notebook.gateway import clock, span_export, trace_context
from fal_notebook.gateway.headers import Header
from fal_notebook.gateway.tracing import Trace, Tracing

if TYPE_CHECKING:
    from starlette.types import Scope

    from fal_notebook.gateway.exchange import Exchange
    from fal_notebook.gateway.fleet import Fleet, Runner
    from fal_notebook.gateway.logs.redaction import Redaction
    from fal_notebook.gateway.queue.table import QueuedRequest

# So much of a path is told; it may be as long as a head.
LONGEST_PATH = 512
_METHODS = frozenset(
    ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH")
)
_W3C = TraceContextTextMapPropagator()

Attributes = dict[str, str | int]


class Spans(Tracing):
    """Makes the spans, for `span_export` to send.

    Raises
    ------
    ValueError
        When one of OpenTelemetry's variables cannot be read.
    """

    def __init__(self, redaction: Redaction) -> None:
        self._provider = span_export.start()
        self._tracer = self._provider.get_tracer("fal_notebook.gateway", __version__)
        self._redaction = redaction

    def direct(self, app: Fleet, scope: Scope, path: bytes, request_id: str) -> Trace:
        """Begin the span of a direct request."""
        return self._begun(app, scope, path, request_id, scope["headers"])

    @contextlib.contextmanager
    def submit(self, app: Fleet, scope: Scope, request: QueuedRequest) -> Iterator[None]:
        """Record that a request is accepted; the trace that is kept with it is that span's."""
        path = request.target.partition(b"?")[0]
        spans = self._begun(app, scope, path, request.id, request.headers)
        request.headers = [*trace_context.without(request.headers), *spans.headers]
        status = 200
        try:
            yield
        except BaseException as error:
            status = getattr(error, "status", 500)
            raise
        finally:
            spans.end(status)

    def queued(self, app: Fleet, request: QueuedRequest) -> Trace:
        """Return what records an attempt, below the span of the submit."""
        path = request.target.partition(b"?")[0].decode("latin-1")
        about = _about(app, request.id, path) | {"http.request.method": _method(request.method)}
        return RequestSpans(self._tracer, _named(request.headers), about, request.attempts - 1)

    async def close(self) -> None:
        """Send what is left; a collector that does not take it in time does not get it."""
        await span_export.close(self._provider)

    def _begun(
        self, app: Fleet, scope: Scope, path: bytes, request_id: str, headers: list[Header]
    ) -> RequestSpans:
        """Begin the span of a request that comes in, below the caller's."""
        text = path.decode("latin-1")
        method, kind = _method(scope["method"]), scope["raw_path"].split(b"/", 2)[1].decode()
        about = _about(app, request_id, text) | {"http.request.method": method}
        route = f"/{kind}/{app.owner}/{app.name}{about.get('fal.endpoint', '')}"
        shown = text if "fal.endpoint" in about else self._redaction.current()(text)
        told: Attributes = {
            "http.route": route,
            "url.path": f"/{kind}/{app.owner}/{app.name}{shown}"[:LONGEST_PATH],
            "url.scheme": scope["scheme"],
            "network.protocol.version": scope["http_version"],
        }
        context = _named(headers)
        name = f"{'HTTP' if method == '_OTHER' else method} {route}"
        span = self._tracer.start_span(name, context, SpanKind.SERVER, about | told)
        return RequestSpans(self._tracer, set_span_in_context(span, context), about, 0, span)


class RequestSpans(Trace):
    """The spans below that of one request, and its own.

    Parameters
    ----------
    context : Context
        Their parent.
    about : dict
        The attributes that all of them have.
    attempts : int
        How many came before.
    span : Span, optional
        The request's own, which ends with `end`.
    """

    def __init__(
        self,
        tracer: Tracer,
        context: Context,
        about: Attributes,
        attempts: int,
        span: Span | None = None,
    ) -> None:
        self._tracer = tracer
        self._context = context
        self._about = about
        self._attempts = attempts
        self._span = span

    @property
    def headers(self) -> tuple[Header, ...]:
        """The headers that name the trace with this request's span."""
        return _headers(self._context)

    def waited(self, since: float, runner: Runner) -> None:
        """Record the wait and, where that runner was started meanwhile, its cold start."""
        now, row = clock.now(), runner.row
        wait = self._past("queue wait", self._context, runner, since, now)
        if row.ready_at is not None and row.ready_at > since:
            began = max(row.created_at, since)
            self._past("cold start", wait, runner, began, row.ready_at)

    def _past(
        self, name: str, parent: Context, runner: Runner, began: float, ended: float
    ) -> Context:
        """Record what is over; return the context of what was a part of it."""
        about, start = self._about | _of_runner(runner), int(began * 1e9)
        span = self._tracer.start_span(name, parent, attributes=about, start_time=start)
        span.end(int(ended * 1e9))
        return set_span_in_context(span, parent)

    @contextlib.contextmanager
    def attempt(self, exchange: Exchange, runner: Runner) -> Iterator[None]:
        """Record the work of a runner; its requests name this span as their parent."""
        about = self._about | _of_runner(runner)
        if self._attempts:
            about["http.request.resend_count"] = self._attempts
        self._attempts += 1
        span = self._tracer.start_span("attempt", self._context, SpanKind.CLIENT, about)
        exchange.trace = _headers(set_span_in_context(span, self._context))
        kind = ""
        try:
            yield
        except BaseException as error:
            kind = getattr(error, "kind", "") or type(error).__name__
            raise
        finally:
            _end(span, exchange.status, kind, failed=bool(kind) or exchange.status >= 400)

    def end(self, status: int, kind: str = "") -> None:
        """End the request's own span."""
        if self._span is not None:
            _end(self._span, status, kind, failed=not status or status >= 500)


def _about(app: Fleet, request_id: str, path: str) -> Attributes:
    """Return what all spans of a request say; an endpoint is a path that the app's schema has."""
    about: Attributes = {"fal.app": f"{app.owner}/{app.name}", "fal.request_id": request_id}
    if app.revision is not None:
        about["fal.revision"] = app.revision.number
        if path in app.revision.openapi.get("paths", ()):
            about["fal.endpoint"] = path
    return about


def _of_runner(runner: Runner) -> Attributes:
    row = runner.row
    return {"fal.runner": row.id, "fal.machine_type": row.machine_type}


def _method(method: str) -> str:
    return method if method in _METHODS else "_OTHER"


def _named(headers: list[Header]) -> Context:
    """Return the context that checked headers name."""
    return _W3C.extract(trace_context.of(headers), Context())


def _headers(context: Context) -> tuple[Header, ...]:
    told = dict[str, str]()
    _W3C.inject(told, context)
    return tuple((name.encode(), value.encode("latin-1")) for name, value in told.items())


def _end(span: Span, status: int, kind: str, failed: bool) -> None:
    if status:
        span.set_attribute("http.response.status_code", status)
    if failed:
        span.set_attribute("error.type", kind or (str(status) if status else "_OTHER"))
        span.set_status(StatusCode.ERROR)
    span.end()
