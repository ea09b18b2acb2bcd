"""HTTP/1.1 as uvicorn speaks it, with a bound on what a caller may send before it is known."""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# The extension of a request's scope that holds a target in absolute form.
TARGET = "fal_notebook.target"
# A head that is longer than this and has not ended is refused (RFC 6585, 431).
MAX_HEAD = 64 * 1024

_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"content-length: 0\r\nconnection: close\r\n\r\n"
)


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
        if not self.url.startswith(b"/"):
            extensions = self.scope.setdefault("extensions", {})
            extensions[TARGET] = {"url": self.url}
        super().on_headers_complete()

    def _unsupported_upgrade_warning(self) -> None:
        """Stay silent: the app says to the caller that there is no such upgrade."""

    def data_received(self, data: bytes) -> None:
        """Refuse a head that does not end."""
        super().data_received(data)
        if self._head is None or self.transport.is_closing():
            return
        self._head += len(data)
        if self._head > MAX_HEAD:
            self.transport.write(_TOO_LARGE)
            self.transport.close()
