"""Asking again when the gateway went away meanwhile: what waits outlasts a restart of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from fal_notebook.exceptions import GatewayUnavailableError

T = TypeVar("T")

# A gateway is looked for, or started, for so long after it went away (seconds): one that ends in
# order lets its runners drain first.
LONGEST = 30.0
PAUSE = 0.1


class Patience:
    """Counts from the first failure in a row; `found` says that the gateway answers again."""

    def __init__(self) -> None:
        self._since: float | None = None

    def found(self) -> None:
        """Forget the failures before."""
        self._since = None

    async def lost(self, error: GatewayUnavailableError) -> None:
        """Return when it is time to ask again; raise `error` when it has been too long."""
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        if now - self._since > LONGEST:
            raise error
        await asyncio.sleep(PAUSE)


async def again(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask until the gateway answers; what is asked must do no harm when it is done twice."""
    patience = Patience()
    while True:
        try:
            return await ask()
        except GatewayUnavailableError as error:
            await patience.lost(error)
