"""uvicorn as gateway and runner use it: no signal handlers, no tick; it sleeps until stopped."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn


class Server(uvicorn.Server):
    """Serves an ASGI app until `stop`.

    Parameters
    ----------
    app : ASGI callable
    http : str or type
        uvicorn's name of a protocol, or a protocol class.
    keep_alive : int
        Seconds that an idle connection stays open.
    certificate : Path or None
        File with certificate and key, to answer over TLS.
    """

    def __init__(
        self,
        app: Any,
        http: Any = "httptools",
        keep_alive: int = 75,
        certificate: Path | None = None,
    ) -> None:
        config = uvicorn.Config(
            app,
            http=http,
            ws="none",
            ws_ping_interval=None,  # whoever does not read would not see the answer
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            proxy_headers=False,  # local callers would forge scheme and address
            server_header=False,
            date_header=False,
            timeout_keep_alive=keep_alive,
            ssl_certfile=certificate,
        )
        super().__init__(config)
        self._stopped = asyncio.Event()

    def stop(self) -> None:
        """End at once, with what is in flight."""
        self.should_exit = self.force_exit = True
        self._stopped.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the program: it drains first."""
        yield

    async def main_loop(self) -> None:
        """Sleep; uvicorn's own loop wakes ten times a second for a date header that is off."""
        await self._stopped.wait()
