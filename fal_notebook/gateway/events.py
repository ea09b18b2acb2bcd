"""Followers of events: what the store committed, what happened before, and live samples."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from fal_notebook.gateway.store import Event, Store

# A follower that reads slower than this many messages behind loses its connection, not our memory.
MAX_BEHIND = 10_000
KEEPALIVE = 15.0


class Events:
    """Hands each event of the store, and each sample, to everyone who follows."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._queues: set[asyncio.Queue[Event | None]] = set()
        store.followers.append(self.publish)

    def publish(self, event: Event) -> None:
        """Hand an event to every follower."""
        for queue in list(self._queues):
            if queue.qsize() >= MAX_BEHIND:
                self._queues.discard(queue)
                queue.put_nowait(None)
            else:
                queue.put_nowait(event)

    def sample(self, owner: str, app: str, sample: dict[str, Any]) -> None:
        """Hand a load sample to every follower; samples are not stored."""
        if self._queues:
            self.publish(Event(0, sample["at"], "sample", owner, app, sample))

    def detail(self, owner: str, app: str, data: dict[str, Any]) -> None:
        """Tell every follower how far a build's step is; that is not stored."""
        self.publish(Event(0, time.time(), "detail", owner, app, data))

    def errors(self, owner: str, app: str, data: dict[str, Any]) -> None:
        """Tell every follower that requests failed; they are stored as groups, not as events."""
        self.publish(Event(0, data["at"], "error", owner, app, data))

    def close(self) -> None:
        """End every follower."""
        for queue in self._queues:
            queue.put_nowait(None)

    async def follow(self, since: int, owner: str, app: str) -> AsyncIterator[bytes]:
        """Yield server-sent events after `since`, then live ones; of one owner or app if named."""
        with self._subscribed() as queue:
            for event in self._store.events(since, owner, app):
                since = event.seq
                yield _encode(event)
            while True:
                try:
                    event_or_end = await asyncio.wait_for(queue.get(), KEEPALIVE)
                except asyncio.TimeoutError:
                    yield b": keep-alive\n\n"
                    continue
                if event_or_end is None:
                    return
                event = event_or_end
                wanted = owner in ("", event.owner) and app in ("", event.app)
                if wanted and (event.seq == 0 or event.seq > since):
                    yield _encode(event)

    @contextmanager
    def _subscribed(self) -> Iterator[asyncio.Queue[Event | None]]:
        queue: asyncio.Queue[Event | None] = asyncio.Queue()
        self._queues.add(queue)
        try:
            yield queue
        finally:
            self._queues.discard(queue)


def _encode(event: Event) -> bytes:
    identity = f"id: {event.seq}\n" if event.seq else ""
    return f"{identity}event: {event.kind}\ndata: {json.dumps(asdict(event))}\n\n".encode()
