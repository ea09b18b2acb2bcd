"""The gateway for containers: a port on their bridge, on which only keys of runners count."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

from starlette.types import Receive, Scope, Send

from fal_notebook import settings
from fal_notebook.exceptions import GatewayError, UnauthorizedError
from fal_notebook.gateway import limits
from fal_notebook.gateway.auth import RUNNER, Auth, HostCheck
from fal_notebook.gateway.ports import listen
from fal_notebook.gateway.protocol import BoundedProtocol
from fal_notebook.gateway.replies import error_reply
from fal_notebook.gateway.storage.call import PUBLIC_BASE
from fal_notebook.runner.server import Server

_FOREIGN = "on this address only keys of runners are taken; the owner's are for this machine"
_LOG = logging.getLogger(__name__)


class RunnersOnly:
    """Lets requests of runners, and those without any key, go on to the gateway's app.

    Files that they store get URLs below `public`, which callers of their apps reach.
    """

    def __init__(self, app: Any, auth: Auth, public: str) -> None:
        self._app = app
        self._auth = auth
        self._public = public

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        for authorization in (v for n, v in scope.get("headers", ()) if n == b"authorization"):
            if not self._is_runners(authorization):
                await error_reply(403, _FOREIGN, close=True)(send)
                return
        await self._app({**scope, PUBLIC_BASE: self._public}, receive, send)

    def _is_runners(self, authorization: bytes) -> bool:
        try:
            principal = self._auth.identify(authorization)
        except UnauthorizedError:
            return True  # it is nobody's: an app's own, or it is refused further on
        return principal is None or principal.scope == RUNNER


class BridgePort:
    """Opened when the first container needs it, and by every later gateway on that port.

    Attributes
    ----------
    app : ASGI callable
        Answers; to be set before `open`.
    """

    app: Any = None

    def __init__(self, state: Path, host_check: HostCheck) -> None:
        self._record = state / "docker-port"
        self._host_check = host_check
        self._server: Server | None = None
        self._serving: asyncio.Task[None] | None = None
        self._url = ""

    def open(self, host: str) -> str:
        """Open the port if it is closed; return the gateway's URL for containers.

        Without the port they have no gateway, and run all the same.
        """
        if self._server is None and self.app is not None:
            try:
                self._serve(host)
            except (OSError, GatewayError) as error:
                _LOG.warning("containers cannot reach the gateway: %s: %s", host, error)
        return self._url

    def _serve(self, host: str) -> None:
        listener = listen("docker_port", settings.setting("docker_port", 0), self._record, host)
        port = int(listener.getsockname()[1])
        self._url = f"http://{host}:{port}"
        self._host_check.add("http", port, (host,))
        self._server = Server(self.app, BoundedProtocol, limits.IDLE_TIME)
        self._serving = asyncio.ensure_future(self._server.serve([listener]))

    async def close(self) -> None:
        """Close it with what is in flight."""
        if self._server is not None and self._serving is not None:
            self._server.stop()
            await self._serving
