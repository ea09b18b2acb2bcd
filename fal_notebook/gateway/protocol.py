"""HTTP/1.1 as uvicorn speaks it, with a bound on what a caller may send before it is known."""

from __future__ import annotations

import contextlib
import sys
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
    _offers_another = False
    _data = _left = b""

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
        self._offers_another = self._get_upgrade() not in (None, b"websocket")
        super().on_headers_complete()

    def _get_upgrade(self) -> bytes | None:
        """Return what is offered, where the parser takes the request for one of an upgrade."""
        upgrade: bytes | None = dict(self.scope["headers"]).get(b"upgrade")
        return upgrade.lower() if upgrade is not None and self.parser.should_upgrade() else None

    def _should_upgrade(self) -> bool:
        return self._offers_another or super()._should_upgrade()

    def _unsupported_upgrade_warning(self) -> None:
        """Stay silent: the app says to the caller that there is no such upgrade."""

    def _should_upgrade_to_ws(self) -> bool:
        return self.url.startswith(b"/run/")

    def handle_websocket_upgrade(self) -> None:
        """Hand the connection to a `Caller`, and the request to the app as any other."""
        if self._offers_another:
            self._decline()
            return
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

    def _decline(self) -> None:
        """Read the request again without its offer, which may be ignored (RFC 9110, 7.8).

        The parser took its body for the other protocol, and may want nothing more: a new one does.
        """
        upgrade = sys.exc_info()[1]
        assert isinstance(upgrade, httptools.HttpParserUpgrade)
        kept = [header for header in self.scope["headers"] if header[0] != b"upgrade"]
        first = b"%b %b HTTP/%b" % (
            self.scope["method"].encode(),
            self.url,
            self.scope["http_version"].encode(),
        )
        head = b"\r\n".join([first, *(name + b": " + value for name, value in kept)])
        self._left = head + b"\r\n\r\n" + self._data[upgrade.args[0] :]
        self._offers_another = False
        self.parser = httptools.HttpRequestParser(self)
        with contextlib.suppress(AttributeError):  # as uvicorn does; httptools before 0.6.3
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)

    def data_received(self, data: bytes) -> None:
        """Read it; refuse a head that does not end."""
        self._left = data
        while self._left and not self.transport.is_closing():
            self._data, self._left = self._left, b""
            super().data_received(self._data)
        self._data = b""
        if self._head is None or self.transport.is_closing():
            return
        self._head += len(data)
        if self._head > MAX_HEAD:
            self.transport.write(_TOO_LARGE)
            self.transport.close()
