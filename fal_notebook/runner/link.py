"""The runner's link to its gateway: its states as they come, and the failures of its requests."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

from starlette.types import Receive, Send

from fal_notebook.runner.failures import Failures

# An answer does not wait for the link for longer (seconds).
TELL = 1.0


class Link:
    """The runner's states, replayed to every gateway that connects, then followed live.

    Each says how many seconds ago it began: a runner that is busy with its set-up tells it late.

    Failures of requests are told to one gateway, once.
    """

    def __init__(self) -> None:
        self.states: list[dict[str, Any]] = []
        self._at: list[float] = []
        self.gateways = 0
        self.last_seen = time.monotonic()
        self._changed = asyncio.Event()
        self.failures = Failures(self._changed.set)

    def publish(self, state: str, **details: Any) -> None:
        """Enter a state and tell every connected gateway."""
        self.states.append({"state": state, **details})
        self._at.append(time.monotonic())
        self._changed.set()

    async def told(self) -> None:
        """Return when what failed was sent to a gateway, at once where none is connected.

        An answer comes after that: the gateway may end the runner for it.
        """
        deadline = time.monotonic() + TELL
        while self.gateways and self.failures.waiting and time.monotonic() < deadline:
            await asyncio.sleep(0)
        await asyncio.sleep(0)  # what was taken is being sent

    async def serve(self, receive: Receive, send: Send) -> None:
        """Send each state and failure as one JSON line until the gateway goes away."""
        self.gateways += 1
        gone = asyncio.ensure_future(disconnected(receive))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            sent = 0
            while not gone.done():
                self._changed.clear()
                now = time.monotonic()
                new = zip(self.states[sent:], self._at[sent:], strict=True)
                lines = [{**state, "ago": now - at} for state, at in new]
                lines += [{"error": x} for x in self.failures.take()]
                sent = len(self.states)
                for line in lines:
                    data = json.dumps(line).encode() + b"\n"
                    await send({"type": "http.response.body", "body": data, "more_body": True})
                changed = asyncio.ensure_future(self._changed.wait())
                await asyncio.wait((gone, changed), return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
        finally:
            gone.cancel()
            self.gateways -= 1
            self.last_seen = time.monotonic()


async def disconnected(receive: Receive) -> None:
    """Return when the other side closes the connection; its request has been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
