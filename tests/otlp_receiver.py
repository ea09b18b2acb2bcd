"""A real, small collector: takes OTLP over HTTP, decoded by OpenTelemetry's own schema."""

from __future__ import annotations

import http.server
import threading
from dataclasses import dataclass
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Span:
    """One span as it was received; ids in hexadecimal, times in seconds."""

    name: str
    kind: int
    trace: str
    id: str
    parent: str
    begin: float
    end: float
    failed: bool
    attributes: dict[str, Any]
    resource: dict[str, Any]
    trace_state: str


class Receiver:
    """Listens on a port of this machine; keeps spans and bodies while `open` is set.

    While it is not, every exporter that connects waits for its answer.
    """

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.bodies: list[bytes] = []
        self.asked = threading.Event()
        self.open = threading.Event()
        self.open.set()
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.asked.set()
                receiver.open.wait()
                assert self.path == "/v1/traces"
                receiver.bodies.append(body)
                receiver.spans += _spans(body)
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def of(self, **attributes: Any) -> list[Span]:
        """Return the spans with these attributes, `__` for `.`, in order of their beginning."""
        wanted = {name.replace("__", "."): value for name, value in attributes.items()}
        found = [s for s in self.spans if wanted.items() <= s.attributes.items()]
        return sorted(found, key=lambda span: (span.begin, -span.end))

    def close(self) -> None:
        """Stop listening."""
        self.open.set()
        self._server.shutdown()
        self._server.server_close()


def _spans(body: bytes) -> list[Span]:
    request = ExportTraceServiceRequest.FromString(body)
    return [
        Span(
            span.name,
            span.kind,
            span.trace_id.hex(),
            span.span_id.hex(),
            span.parent_span_id.hex(),
            span.start_time_unix_nano / 1e9,
            span.end_time_unix_nano / 1e9,
            span.status.code == 2,
            _values(span.attributes),
            _values(one.resource.attributes),
            span.trace_state,
        )
        for one in request.resource_spans
        for scope in one.scope_spans
        for span in scope.spans
    ]


def _values(attributes: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in attributes}
