"""Ends a runner whose event loop the user's code never gives back, once its gateway has gone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

# Linux says so when the other side of a TCP connection has gone, others with POLLHUP alone.
_GONE = select.POLLHUP | select.POLLERR | getattr(select, "POLLRDHUP", 0)


class Watchdog:
    """A thread that kills its process after `patience` seconds without loop and gateway.

    A loop at work ends the runner itself, and drains it; one that stands still while a gateway is
    connected is the gateway's affair.

    Parameters
    ----------
    connections : callable
        Returns uvicorn's protocols; all are those of a gateway.
    patience : float
        Seconds.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        connections: Callable[[], Iterable[Any]],
        patience: float,
    ) -> None:
        self._loop = loop
        self._connections = connections
        self._patience = patience
        self._alive = time.monotonic()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def _watch(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the runner has ended
            while time.monotonic() - self._alive <= self._patience:
                self._loop.call_soon_threadsafe(self._beat)
                time.sleep(min(5.0, self._patience / 4))
                if any(_is_connected(connection) for connection in list(self._connections())):
                    self._beat()
            os.write(2, b"This runner's gateway has gone, and its event loop stands still.\n")
            os._exit(1)

    def _beat(self) -> None:
        self._alive = time.monotonic()


def _is_connected(connection: Any) -> bool:
    waiting = select.poll()
    try:
        waiting.register(connection.transport.get_extra_info("socket").fileno(), _GONE)
    except (AttributeError, OSError, ValueError):  # it is being closed
        return False
    return not waiting.poll(0)
