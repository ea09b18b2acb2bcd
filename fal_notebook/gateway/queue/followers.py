"""Who waits for a queued request to change."""

from __future__ import annotations

import asyncio


class Followers:
    """Wakes those who follow a request, by its number."""

    def __init__(self) -> None:
        self._waiting: dict[int, set[asyncio.Future[None]]] = {}

    async def changed(self, number: int, timeout: float) -> None:
        """Return when the request has changed, at the latest after `timeout` seconds."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(number, set())
        waiting.add(future)
        try:
            await asyncio.wait((future,), timeout=timeout)
        finally:
            waiting.discard(future)
            if not waiting:
                self._waiting.pop(number, None)

    def tell(self, number: int) -> None:
        """Wake everyone who follows this request."""
        for future in self._waiting.get(number, ()):
            if not future.done():
                future.set_result(None)
