"""HTTP/1.1 as uvicorn speaks it, with a bound on what a caller may send before it is known."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fal_notebook.gateway.splice import TUNNEL, Caller

# The extension of a request's scope that holds a target in absolute form.
TARGET = "fal_notebook.target"
# A head that is longer than this and has not ended is refused (RFC 6585, 431).
MAX_HEAD = 64 * 1024

_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"content-length: 0\r\nconnection: close\r\n\r\n"
)


def _tunnel_scope(scope: Any, url: bytes, caller: Caller) -> Any:
    parsed = httptools.parse_url(url)
    return {
        **scope,
        "type": TUNNEL,
        "path": unquote(parsed.path.decode("ascii")),
        "raw_path": parsed.path,
        "query_string": parsed.query or b"",
        "extensions": {TUNNEL: caller},
    }


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol; what is not yet a whole head is counted."""

    _head: int | None = None

    def on_message_begin(self) -> None:
        """Start to count."""
        self._head = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Stop counting; let the app see a target that is more than a path."""
        self._head = None
        # A copy: trailers, whatever they are called, come into the list that the parser fills.
        self.scope["headers"] = self.headers.copy()
        if not self.url.startswith(b"/"):
            extensions = self.scope.setdefault("extensions", {})
            extensions[TARGET] = {"url": self.url}
        super().on_headers_complete()

    def _unsupported_upgrade_warning(self) -> None:
        """Stay silent: the app says to the caller that there is no such upgrade."""

    def _should_upgrade_to_ws(self) -> bool:
        return self.url.startswith(b"/run/")

    def handle_websocket_upgrade(self) -> None:
        """Hand the connection to a `Caller`, and the request to the app as any other."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.send_400_response("The request before this upgrade is not answered yet.")
            return
        caller = Caller()
        caller.connection_made(self.transport)
        self.connections.discard(self)
        self.transport.set_protocol(caller)
        scope = _tunnel_scope(self.scope, self.url, caller)
        task = self.loop.create_task(self.app(scope, caller.receive, caller.send))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    def data_received(self, data: bytes) -> None:
        """Refuse a head that does not end."""
        super().data_received(data)
        if self._head is None or self.transport.is_closing():
            return
        self._head += len(data)
        if self._head > MAX_HEAD:
            self.transport.write(_TOO_LARGE)
            self.transport.close()
