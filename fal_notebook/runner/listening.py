"""Where a runner listens: ``unix:PATH`` on this machine, ``tcp:HOST:PORT`` in a container."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

# The gateway takes a refused connection for a lost runner.
_BACKLOG = 4096


def listen(address: str) -> socket.socket:
    """Return a listening socket; only this user may connect to a Unix one."""
    if address.startswith("tcp:"):
        host, _, port = address.removeprefix("tcp:").rpartition(":")
        return socket.create_server((host, int(port)), backlog=_BACKLOG)
    server = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        server.bind(address.removeprefix("unix:"))
    finally:
        os.umask(before)
    server.listen(_BACKLOG)
    return server


def forget(address: str) -> None:
    """Remove the file of a Unix socket, if it is one and still there."""
    if address.startswith("unix:"):
        with contextlib.suppress(OSError):
            Path(address.removeprefix("unix:")).unlink()
