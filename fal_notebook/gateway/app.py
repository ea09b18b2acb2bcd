"""The ASGI app of the gateway: check Host and Origin, then hot path or control API."""

from __future__ import annotations

from typing import Any

from fal_notebook.gateway.control import create_control
from fal_notebook.gateway.gateway import Gateway
from fal_notebook.gateway.proxy import Receive, Scope, Send
from fal_notebook.gateway.replies import error_reply


class GatewayApp:
    """Dispatches every request; nothing answers that came under a foreign name."""

    def __init__(self, gateway: Gateway) -> None:
        self._control: Any = create_control(gateway)
        self._proxy = gateway.proxy
        self._check = gateway.host_check

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        headers = scope["headers"]
        refusal = self._check.refusal(_only(headers, b"host"), _only(headers, b"origin"))
        if refusal is not None:
            await error_reply(403, refusal)(send)
        elif scope["path"].startswith("/run/"):
            await self._proxy(scope, receive, send)
        else:
            await self._control(scope, receive, send)


def _only(headers: list[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    """Return the one value of a header; two of a kind count as a foreign value."""
    values = [v for n, v in headers if n == name]
    return b", ".join(values) if values else None
