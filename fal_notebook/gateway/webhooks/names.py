"""Looks up the names of webhooks' hosts, in threads: one that hangs holds up no other."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

# A name that hangs holds its thread for as long as the machine's resolver is patient. Names that
# were found at once when they were last looked up have threads of their own.
THREADS = 512
OWN_THREADS = 64
AT_ONCE = 1.0
# So many such names are remembered.
REMEMBERED = 4096

LookUp = Callable[..., list[Any]]


class Names:
    """A resolver, for any event loop; who asks for a name that is being looked up waits for that.

    Parameters
    ----------
    look_up : callable
        As ``socket.getaddrinfo``.
    """

    def __init__(self, look_up: LookUp = socket.getaddrinfo) -> None:
        self._look_up = look_up
        self._found: dict[str, None] = {}  # names that were found at once, the newest last
        self._asked: dict[tuple[str, int], Future[list[str]]] = {}
        self._threads = ThreadPoolExecutor(THREADS, "webhook-names")
        self._own_threads = ThreadPoolExecutor(OWN_THREADS, "webhook-found-names")

    async def resolve(self, host: str, port: int) -> list[str]:
        """Return the addresses of a host; OSError when there are none."""
        asked = self._asked.get((host, port))
        if asked is None:
            threads = self._own_threads if host in self._found else self._threads
            asked = self._asked[host, port] = threads.submit(self._addresses, host, port)
            asked.add_done_callback(lambda _: self._asked.pop((host, port)))
        return await asyncio.shield(asyncio.wrap_future(asked))

    def _addresses(self, host: str, port: int) -> list[str]:
        self._found.pop(host, None)
        begun = time.monotonic()
        found = self._look_up(host, port, type=socket.SOCK_STREAM)
        if time.monotonic() - begun < AT_ONCE:
            self._found[host] = None
        for forgotten in list(self._found)[:-REMEMBERED]:
            self._found.pop(forgotten, None)
        return list(dict.fromkeys(str(entry[4][0]) for entry in found))
