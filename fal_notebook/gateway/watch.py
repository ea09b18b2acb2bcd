"""A watch over one exchange: it ends when it takes too long or its caller has gone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from starlette.types import Receive

from fal_notebook.gateway import limits

# An exchange that is shorter than this costs no look at its caller.
WATCH_AFTER = 0.25


class Watch:
    """Cancels the task of an exchange.

    Parameters
    ----------
    receive : callable
        Returns when the caller has gone; used only after `begin`.
    timeout : float
        Seconds that the exchange may take.
    on_gone : callable
        Called once when the caller has gone before `answered` was set. The exchange goes on then:
        a runner that works is not free before it has answered.
    """

    def __init__(
        self,
        task: asyncio.Task[Any],
        receive: Receive,
        timeout: float,
        on_gone: Callable[[], None],
    ) -> None:
        self.timed_out = False
        self.client_gone = False
        self.answered = False
        # The caller, not the runner, has to go on: reading, or sending.
        self.with_caller = False
        self.body_expected = False
        self._task = task
        self._receive = receive
        self._on_gone = on_gone
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(timeout, self._time_out)
        self._stall: asyncio.TimerHandle | None = None
        self._delay: asyncio.TimerHandle | None = None
        self._watching: asyncio.Task[None] | None = None

    def expect_body(self, expected: bool, stall: float | None = limits.BODY_STALL) -> None:
        """Say whether the next piece of the request's body is what everything waits for.

        It may take `stall` seconds, without that as long as the whole exchange.
        """
        self.body_expected = expected
        if self._stall is not None:
            self._stall.cancel()
        self._stall = None
        if expected and stall is not None:
            self._stall = self._loop.call_later(stall, self._time_out)

    def begin(self) -> None:
        """Start to look for the caller going away; the request's body has been read."""
        self._delay = self._loop.call_later(WATCH_AFTER, self._watch)

    def gone(self) -> None:
        """Note that the caller has gone."""
        self.client_gone = True
        if self.answered:
            self._task.cancel()
        else:
            self._on_gone()

    def end(self) -> None:
        """Stop watching."""
        for pending in (self._timer, self._stall, self._delay, self._watching):
            if pending is not None:
                pending.cancel()

    def _time_out(self) -> None:
        self.timed_out = True
        self._task.cancel()

    def _watch(self) -> None:
        self._watching = asyncio.ensure_future(self._until_gone())

    async def _until_gone(self) -> None:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.gone()
