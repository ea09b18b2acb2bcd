"""HTTP/1.1 as a runner speaks it: a path of the app that is a WebSocket becomes one."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# A caller that does not answer a close holds its slot so long (seconds; uvicorn's own are 10).
_FAREWELL = 2.0


class UpgradingProtocol(HttpToolsProtocol):
    """uvicorn's protocol; what speaks WebSocket is imported when the first one is asked for."""

    def _should_upgrade_to_ws(self) -> bool:
        app: Any = self.config.app
        return bool(app.has_socket(unquote(self.url.partition(b"?")[0].decode("latin-1"))))

    def _unsupported_upgrade_warning(self) -> None:
        """Stay silent: the app says to the caller that there is no such upgrade."""

    def handle_websocket_upgrade(self) -> None:
        """Hand the connection to what speaks WebSocket."""
        from uvicorn.protocols.websockets.auto import AutoWebSocketsProtocol

        self.ws_protocol_class = AutoWebSocketsProtocol  # type: ignore[assignment]
        super().handle_websocket_upgrade()
        socket: Any = self.transport.get_protocol()
        socket.close_timeout = _FAREWELL
