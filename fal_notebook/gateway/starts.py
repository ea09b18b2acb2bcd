"""Cold starts: how long each part of a runner's start took, for the last ones of each app."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import asdict
from typing import Any, NamedTuple

from starlette.types import Send

from fal_notebook.exceptions import StoreError
from fal_notebook.gateway import clock
from fal_notebook.gateway.store import RunnerRow, Start, Store

# So many starts of an app are kept.
KEPT = 100

_LOG = logging.getLogger(__name__)


class Parts(NamedTuple):
    """Seconds of each part; `first_byte` is None where nobody waited, or was answered yet."""

    queued: float
    build: float
    start: float
    setup: float
    first_byte: float | None


class Birth:
    """When the start of one runner came to each of its marks (seconds of `clock`).

    Parameters
    ----------
    record : callable
        Called with the marks when the runner is ready, and when the first request that had waited
        for it is answered.
    """

    def __init__(self, record: Callable[[Mapping[str, float]], None]) -> None:
        self.marks = {"decided": clock.now()}
        self.built = 0.0  # seconds for which its deploy built what it starts in
        self._record = record
        self._loop = asyncio.get_running_loop()

    def mark(self, name: str, ago: float = 0.0) -> None:
        """Come to a mark, now or so many seconds ago; only the first time counts."""
        self.marks.setdefault(name, clock.now() - ago)

    def tell(self) -> None:
        """Record the marks, once who waits has been served."""
        self._loop.call_soon(self._record, {**self.marks, "built": self.built})

    def watched(self, send: Send, arrived: float) -> Send:
        """Return the `send` for a request that has waited, which sees when its answer begins.

        Nothing is watched unless it is the first request, and came before the runner was ready.
        """
        if "arrived" in self.marks or arrived > self.marks.get("ready", 0.0):
            return send
        self.marks["arrived"] = arrived

        async def sending(message: MutableMapping[str, Any]) -> None:
            await send(message)
            if "answered" not in self.marks:
                self.mark("answered")
                self.tell()

        return sending


def parts(marks: Mapping[str, float]) -> Parts:
    """Return the seconds of each part; together they are what who waited for the start waited.

    Parameters
    ----------
    marks : mapping
        `decided`, `begun` (it has its GPUs), `process` (it was started), `setup` (its code began)
        and `ready`; `pulling` if its image was fetched; `arrived` and `answered` of the request
        that waited, if one did; `built`, the seconds that its deploy built.
    """
    ready = marks["ready"]
    begun = marks.get("begun", marks["decided"])
    setup = marks.get("setup", marks.get("process", ready))
    arrived = marks.get("arrived", marks["decided"])
    pulled = marks.get("process", ready) - marks["pulling"] if "pulling" in marks else 0.0
    answered = marks.get("answered")
    return Parts(
        queued=max(0.0, begun - arrived),
        build=marks.get("built", 0.0) + max(0.0, pulled),
        start=max(0.0, setup - begun - pulled),
        setup=max(0.0, ready - setup),
        first_byte=None if answered is None else max(0.0, answered - ready),
    )


def record(store: Store, row: RunnerRow, revision: int, marks: Mapping[str, float]) -> None:
    """Keep the parts of a start, and tell of them; it is told again with its `first_byte`."""
    start = Start(
        row.id, row.owner, row.app, revision, row.machine_type, row.created_at, *parts(marks)
    )
    data = {name: value for name, value in asdict(start).items() if name not in ("owner", "app")}
    try:
        if store.revision(row.revision) is None:  # the app was deleted
            return
        with store.transaction():
            store.put(start)
            store.limit_starts(row.owner, row.app, KEPT)
            store.emit("start", row.owner, row.app, data)
    except StoreError as error:
        _LOG.warning("the start of runner %s was not recorded: %s", row.id, error)
