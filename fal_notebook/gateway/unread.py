"""An answer that comes before its request is whole does not close the connection at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


class Unread(asyncio.Transport):
    """A connection as an answer sees it that may come before its request's body is whole."""

    def __init__(self, cycle: RequestResponseCycle, end: Callable[[], None]) -> None:
        super().__init__()
        self._cycle, self._transport, self._end = cycle, cycle.transport, end

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send a piece of the answer."""
        self._transport.write(data)

    def is_closing(self) -> bool:
        """Say whether it is closed."""
        return self._transport.is_closing()

    def close(self) -> None:
        """Close it; behind a whole answer to half a request not at once."""
        unread = self._cycle.response_complete and self._cycle.more_body
        (self._end if unread else self._transport.close)()
