"""How slowly a body may come that the gateway reads for itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from starlette.types import Message, Receive

from fal_notebook.gateway import limits
from fal_notebook.gateway.exchange import RefusedRequestError


class Paced:
    """A ``receive`` that waits for a body only as long as it comes at a pace.

    It may stop for ``BODY_STALL`` seconds in all; what comes gives seconds back, at ``BODY_RATE``.
    Only time that is spent waiting for the caller counts.

    Parameters
    ----------
    refusal : callable
        Makes, of a status and a sentence, what is raised when the body is too slow: a 408.
    """

    def __init__(
        self,
        receive: Receive,
        refusal: Callable[[int, str], Exception] = RefusedRequestError,
    ) -> None:
        self._receive = receive
        self._refusal = refusal
        self._patience = limits.BODY_STALL
        self._more = True

    async def __call__(self) -> Message:
        """Return the next message."""
        if not self._more:  # only the caller's end is left to come
            return await self._receive()
        since = time.monotonic()
        try:
            message = await asyncio.wait_for(self._receive(), self._patience)
        except asyncio.TimeoutError:
            raise self._refusal(408, "the body did not come in time") from None
        self._more = message.get("more_body", False)
        self._earn(len(message.get("body", b"")), time.monotonic() - since)
        return message

    def _earn(self, size: int, waited: float) -> None:
        left = self._patience - waited + size / limits.BODY_RATE
        self._patience = min(limits.BODY_STALL, max(0.0, left))
