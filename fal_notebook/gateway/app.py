"""The ASGI app of the gateway: check name and caller, then hot path or control API."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from fastapi import HTTPException
from starlette.types import Receive, Scope, Send

from fal_notebook.exceptions import UnauthorizedError
from fal_notebook.gateway import js_proxy, trace_context
from fal_notebook.gateway.control import create_control
from fal_notebook.gateway.gateway import Gateway
from fal_notebook.gateway.headers import repeated
from fal_notebook.gateway.logs.of_request import RequestLogs
from fal_notebook.gateway.pace import Paced
from fal_notebook.gateway.protocol import TARGET
from fal_notebook.gateway.queue.routes import QueueRoutes
from fal_notebook.gateway.replies import Reply, error_reply, json_reply
from fal_notebook.gateway.splice import TUNNEL
from fal_notebook.gateway.storage.routes import PREFIXES
from fal_notebook.gateway.tunnel import malformed

# With this key receivers check webhooks; fal publishes its own at the same path.
JWKS = "/.well-known/jwks.json"
# Here fal's clients ask for tokens in place of a key.
TOKENS = b"/rest/tokens"
_NO_TOKENS = "no tokens are made here: send the key itself, as realtime(…, use_jwt=False) does"


class GatewayApp:
    """Dispatches every request; nothing answers that came under a foreign name.

    Callers of the control API are recognised here, before anything of their request is read.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._control: Any = create_control(gateway)
        lines = RequestLogs(gateway.state, gateway.store, gateway.redaction).of
        self._queue = QueueRoutes(gateway.queue, gateway.admission, lines, gateway.max_body)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] not in ("http", TUNNEL):
            return
        headers = dict(scope["headers"])
        refusal = self._misaddressed(scope, headers)
        if refusal is None and js_proxy.is_proxied(scope):
            try:
                scope = js_proxy.local(scope)
            except js_proxy.ForeignTargetError as error:
                await error_reply(400, str(error))(send)
                return
        public = scope["path"] == JWKS
        to_queue = scope["raw_path"].startswith(b"/queue/")
        to_storage = scope["raw_path"].startswith(PREFIXES)
        to_app = to_queue or scope["raw_path"].startswith(b"/run/")
        if refusal is None and to_app and self._gateway.stop_requested.is_set():
            refusal = error_reply(503, "the gateway is stopping", kind="runner_scheduling_failure")
        if refusal is None and scope["raw_path"].startswith(TOKENS):
            refusal = error_reply(501, _NO_TOKENS)
        if refusal is None and not (to_app or to_storage or public):
            refusal = self._unauthorised(scope["path"], headers)
        if refusal is not None:
            await refusal(send)
        elif public:
            await json_reply(self._gateway.signer.jwks(), "")(send)
        elif to_queue:
            scope["headers"] = trace_context.checked(scope["headers"], headers)
            await self._queue(scope, Paced(receive), send)
        elif to_storage:
            await self._gateway.storage(scope, Paced(receive), send)
        elif to_app:
            scope["headers"] = trace_context.checked(scope["headers"], headers)
            await self._gateway.proxy(scope, receive, send)
        else:
            await self._control(scope, Paced(receive, HTTPException), send)

    def _misaddressed(self, scope: Scope, headers: dict[bytes, bytes]) -> Reply | None:
        """Refuse what a web page could send, and headers that can be read in two ways."""
        if len(headers) != len(scope["headers"]) and (name := repeated(scope["headers"])):
            return error_reply(400, f"the header {name} occurs twice", close=True)
        if headers.get(b"upgrade", b"").lower() == b"websocket" and (
            refused := _no_websocket(scope, headers)
        ):
            return refused
        if headers.get(b"transfer-encoding", b"chunked").lower() != b"chunked":
            detail = "a body may be sent chunked; no other transfer coding is understood"
            return error_reply(501, detail, close=True)
        if TARGET in scope.get("extensions", {}) and not self._is_own(scope):
            # It would outweigh the Host header (RFC 9112, 3.2.2).
            return error_reply(400, "the request's target names another host", close=True)
        refusal = self._gateway.host_check.refusal(headers)
        return error_reply(403, refusal) if refusal is not None else None

    def _is_own(self, scope: Scope) -> bool:
        """Say whether a target in absolute form is on this gateway."""
        target = scope["extensions"][TARGET]["url"].decode("latin-1")
        try:
            return self._gateway.host_check.is_own(urlsplit(target).netloc.encode("latin-1"))
        except ValueError:  # brackets that do not match
            return False

    def _unauthorised(self, path: str, headers: dict[bytes, bytes]) -> Reply | None:
        """Let the owner through; any key may read the metrics."""
        try:
            principal = self._gateway.auth.identify(headers.get(b"authorization"))
        except UnauthorizedError as error:
            return error_reply(401, str(error))
        if principal is None:
            needed = "a key" if path == "/metrics" else "the owner's token or an ADMIN key"
            return error_reply(401, f"this needs {needed}")
        if principal.controls or path == "/metrics":
            return None
        return error_reply(403, "this key may call apps but not control them: use an ADMIN key")


def _has_body(headers: dict[bytes, bytes]) -> bool:
    return b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"


def _no_websocket(scope: Scope, headers: dict[bytes, bytes]) -> Reply | None:
    """Refuse what cannot become a WebSocket; any other upgrade is ignored."""
    if _has_body(headers):
        # The parser would take the body for what follows the upgrade: another request.
        return error_reply(400, "a request with a body cannot ask for a WebSocket", close=True)
    if not scope["raw_path"].startswith(b"/run/"):
        detail = "only apps serve WebSockets, at /run/{owner}/{app}"
        return error_reply(404, detail, close=True)
    if scope["type"] != TUNNEL:
        return error_reply(400, "a WebSocket needs the header Connection: Upgrade", close=True)
    wrong = malformed(scope["method"], scope["http_version"], headers)
    return error_reply(400, wrong) if wrong else None
