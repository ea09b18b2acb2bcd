"""The gateway over TLS: a second port for clients that insist on https, opened at first need."""

from __future__ import annotations

import asyncio
import datetime
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fal_notebook import settings
from fal_notebook.exceptions import FalNotebookError
from fal_notebook.gateway import limits
from fal_notebook.gateway.auth import HostCheck
from fal_notebook.gateway.ports import listen
from fal_notebook.gateway.protocol import BoundedProtocol
from fal_notebook.runner.server import Server

if TYPE_CHECKING:
    from fal_notebook.gateway.certificates import Certificates

_LOG = logging.getLogger(__name__)


class TlsPort:
    """The same app behind TLS. Once it was opened every later gateway opens it, on that port.

    Attributes
    ----------
    app : ASGI callable
        Answers; to be set before `open`.
    port : int
        0 while it is closed.
    """

    app: Any = None

    def __init__(self, state: Path, host_check: HostCheck) -> None:
        self._folder = state / "tls"
        self._host_check = host_check
        self._server: Server | None = None
        self._serving: asyncio.Task[None] | None = None
        self.port = 0

    def open(self) -> dict[str, Any]:
        """Open the port if it is closed; return ``port``, ``ca`` and ``bundle`` (paths).

        Raises
        ------
        GatewayError
            When the port that is set cannot be used.
        """
        certificates = self._certificates()
        if self._server is None:
            self._serve(certificates)
        return {
            "port": self.port,
            "ca": str(certificates.ca),
            "bundle": str(certificates.bundle),
        }

    def reopen(self) -> None:
        """Open it if the last gateway had."""
        if not self._folder.exists():
            return
        try:
            self.open()
        except (FalNotebookError, OSError) as error:
            _LOG.warning("the TLS port is not open: %s", error)

    def renew(self) -> None:
        """Use a new certificate from now on when the old one nears its end."""
        if self._server is not None and self._server.config.ssl is not None:
            self._server.config.ssl.load_cert_chain(self._certificates().server)

    async def close(self) -> None:
        """Close it with what is in flight."""
        if self._server is not None and self._serving is not None:
            self._server.stop()
            await self._serving

    def _certificates(self) -> Certificates:
        # Imported at first need: it costs an idle gateway 5 MB.
        from fal_notebook.gateway.certificates import Certificates

        certificates = Certificates(self._folder)
        certificates.ensure(datetime.datetime.now(datetime.timezone.utc))
        return certificates

    def _serve(self, certificates: Certificates) -> None:
        listener = listen("tls_port", settings.setting("tls_port", 0), self._folder / "port")
        server = Server(
            self.app, BoundedProtocol, keep_alive=limits.IDLE_TIME, certificate=certificates.server
        )
        server.config.load()
        self.port = int(listener.getsockname()[1])
        self._host_check.add("https", self.port)
        self._server = server
        self._serving = asyncio.ensure_future(server.serve([listener]))
