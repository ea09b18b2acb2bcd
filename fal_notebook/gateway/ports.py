"""The ports that the gateway listens on: those that are set, else those of the last gateway."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

from fal_notebook.exceptions import GatewayError

HOST = "127.0.0.1"


def listen(name: str, port: int, record: Path, host: str = HOST) -> socket.socket:
    """Listen on a configured port, else on the recorded one, so that URLs stay valid.

    Parameters
    ----------
    name : str
        The setting that configures it.
    port : int
        Its value; 0 when it is not set.
    record : Path
        Where the number of a port that the system chose is kept.
    host : str
        The address of this machine to listen on.

    Raises
    ------
    GatewayError
        When the configured port cannot be used.
    """
    if not 0 <= port <= 65535:
        raise GatewayError(f"{name}={port} is not a port; they go from 1 to 65535")
    if port:
        try:
            return _listen(host, port)
        except OSError as error:
            raise GatewayError(f"{name}={port} cannot be used: {error}") from None
    with contextlib.suppress(OSError, ValueError, OverflowError):
        return _listen(host, int(record.read_text()))
    listener = _listen(host, 0)
    record.write_text(str(listener.getsockname()[1]))
    return listener


def _listen(host: str, port: int) -> socket.socket:
    return socket.create_server((host, port), backlog=2048)
