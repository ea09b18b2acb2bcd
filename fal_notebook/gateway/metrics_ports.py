"""Which port of this machine each runner has for its metrics."""

from __future__ import annotations

import socket


class MetricsPorts:
    """Gives each runner a port of its own: the wanted one to who comes first."""

    def __init__(self) -> None:
        self._held: dict[str, int] = {}

    def take(self, runner: str, wanted: int) -> int:
        """Return the wanted port if it is free, else another; it is the runner's from now on."""
        port = wanted
        while port in self._held.values() or not _bound(port):
            port = _bound(0)
        self._held[runner] = port
        return port

    def hold(self, runner: str, port: int) -> None:
        """Know that a runner has this port."""
        self._held[runner] = port

    def give_back(self, runner: str) -> None:
        """Let others have the port of a runner that has ended."""
        self._held.pop(runner, None)


def _bound(port: int) -> int:
    """Return the port if a server could listen on it, 0 if not; of 0, one that is free."""
    with socket.socket() as probe:
        # As servers do it: connections that have ended on it do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return 0
        return int(probe.getsockname()[1])
