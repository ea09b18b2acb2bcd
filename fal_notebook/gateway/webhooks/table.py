"""Webhooks that are still to be delivered: one row a request, in the queue's database."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from fal_notebook.gateway.webhooks import targets

T = TypeVar("T")

SCHEMA = """
CREATE TABLE IF NOT EXISTS webhooks (
  request_id TEXT PRIMARY KEY, user_id TEXT NOT NULL, url TEXT NOT NULL, host TEXT NOT NULL,
  attempt INTEGER NOT NULL, next_at REAL NOT NULL, error TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS webhooks_by_time ON webhooks (next_at, host, request_id);
"""


class Journal(Protocol):
    """What is needed of the queue's database."""

    def write(self, change: Callable[[sqlite3.Connection], T], /) -> Awaitable[T]:
        """Make a change; return its value once it is durable."""

    def read(self, query: str, /, *arguments: Any) -> Sequence[sqlite3.Row]:
        """Return the rows of a query."""


@dataclass(frozen=True)
class Delivery:
    """A webhook to deliver; `attempt` counts those that failed, `error` is the last one's."""

    request_id: str
    user_id: str
    url: str
    host: str
    attempt: int
    next_at: float
    error: str


def add(connection: sqlite3.Connection, request_id: str, user_id: str, url: str, at: float) -> None:
    """Add a delivery, in the transaction that records the request's end; once for each request."""
    connection.execute(
        "INSERT OR IGNORE INTO webhooks VALUES (?, ?, ?, ?, 0, ?, '')",
        (request_id, user_id, url, targets.parse(url).host, at),
    )


class DeliveryTable:
    """The rows of one database."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def due(
        self, now: float, hosts: Collection[str] = (), requests: Collection[str] = ()
    ) -> Delivery | None:
        """Return the delivery that is due longest, but of none of these hosts and requests."""
        rows = self._journal.read(
            "SELECT * FROM webhooks WHERE next_at <= ?"
            " AND host NOT IN (SELECT value FROM json_each(?))"
            " AND request_id NOT IN (SELECT value FROM json_each(?)) ORDER BY next_at LIMIT 1",
            *(now, json.dumps(list(hosts)), json.dumps(list(requests))),
        )
        return Delivery(**rows[0]) if rows else None

    def next_at(self, after: float) -> float | None:
        """Return when the next delivery becomes due (unix seconds), None when there is none."""
        query = "SELECT MIN(next_at) AS next_at FROM webhooks WHERE next_at > ?"
        at = self._journal.read(query, after)[0]["next_at"]
        return None if at is None else float(at)

    async def reschedule(self, request_id: str, attempt: int, next_at: float, error: str) -> None:
        """Record a failed attempt."""
        query = "UPDATE webhooks SET attempt = ?, next_at = ?, error = ? WHERE request_id = ?"
        await self._write(query, (attempt, next_at, error, request_id))

    async def done(self, request_id: str) -> None:
        """Remove a delivery: it arrived, or is given up."""
        await self._write("DELETE FROM webhooks WHERE request_id = ?", (request_id,))

    async def _write(self, query: str, args: tuple[Any, ...]) -> None:
        def change(connection: sqlite3.Connection) -> None:
            connection.execute(query, args)

        await self._journal.write(change)
