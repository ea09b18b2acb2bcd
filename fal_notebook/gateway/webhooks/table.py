"""Webhooks that are still to be delivered: one row a request, in the queue's database."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

SCHEMA = """
CREATE TABLE IF NOT EXISTS webhooks (
  request_id TEXT PRIMARY KEY, user_id TEXT NOT NULL, url TEXT NOT NULL, target TEXT NOT NULL,
  attempt INTEGER NOT NULL, next_at REAL NOT NULL, error TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS webhooks_by_time ON webhooks (next_at);
CREATE INDEX IF NOT EXISTS webhooks_by_target ON webhooks (target, next_at, request_id);
"""

# The targets are looked up one after the other in the index: a dead one costs one step, however
# many rows it has, and so do all targets of a crowded address ("$" comes behind "#").
_ADDRESS = "substr(known.target, 1, instr(known.target, '#') - 1)"
_IS_CROWDED = f"{_ADDRESS} IN (SELECT value FROM json_each(?5))"
_ALL = f"""
known (target) AS (
  SELECT MIN(target) FROM webhooks UNION ALL
  SELECT (
    SELECT MIN(target) FROM webhooks
    WHERE target > CASE WHEN {_IS_CROWDED} THEN {_ADDRESS} || '$' ELSE known.target END)
  FROM known WHERE target IS NOT NULL),
wanted (target) AS (
  SELECT target FROM known WHERE target IS NOT NULL AND NOT {_IS_CROWDED}
  UNION SELECT value FROM json_each(?6))
"""
_THESE = "wanted (target) AS (SELECT value FROM json_each(?5))"
_DUE = """
SELECT webhooks.* FROM wanted CROSS JOIN webhooks ON request_id = (
  SELECT request_id FROM webhooks WHERE target = wanted.target AND next_at <= ?1
  AND request_id NOT IN (SELECT value FROM json_each(?4)) ORDER BY next_at LIMIT 1)
WHERE wanted.target NOT IN (SELECT value FROM json_each(?3))
ORDER BY attempt > 0, next_at DESC LIMIT ?2
"""


class Journal(Protocol):
    """What is needed of the queue's database."""

    def write(self, change: Callable[[sqlite3.Connection], T], /) -> Awaitable[T]:
        """Make a change; return its value once it is durable."""

    def read(self, query: str, /, *arguments: Any) -> Sequence[sqlite3.Row]:
        """Return the rows of a query."""


@dataclass(frozen=True)
class Delivery:
    """A webhook to deliver.

    `target` is the URL's lane (see `targets`), its own or a shared one; `attempt` counts those that
    failed, `error` is the last one's.
    """

    request_id: str
    user_id: str
    url: str
    target: str
    attempt: int
    next_at: float
    error: str


def add(
    connection: sqlite3.Connection, request_id: str, user_id: str, url: str, target: str, at: float
) -> None:
    """Add a delivery, in the transaction that records the request's end; once for each request."""
    connection.execute(
        "INSERT OR IGNORE INTO webhooks VALUES (?, ?, ?, ?, 0, ?, '')",
        (request_id, user_id, url, target, at),
    )


class DeliveryTable:
    """The rows of one database."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def due(
        self,
        now: float,
        limit: int,
        full: Collection[str] = (),
        requests: Collection[str] = (),
        crowded: Collection[str] = (),
        but: Collection[str] = (),
        only: Collection[str] | None = None,
    ) -> list[Delivery]:
        """Return the delivery of each target that is due longest, those never tried before retries.

        Of several targets the one whose delivery became due last is first: what has waited for
        long most likely stands in line at a target that is dead.

        Parameters
        ----------
        full, requests
            Targets and requests to leave out.
        crowded, but
            Addresses whose targets are left out, and which of these are not.
        only : collection of str, optional
            The targets to look at; all without it.
        """
        lists = (full, requests, *((crowded, but) if only is None else (only,)))
        rows = self._journal.read(
            f"WITH RECURSIVE {_ALL if only is None else _THESE} {_DUE}",
            *(now, limit, *(json.dumps(list(names)) for names in lists)),
        )
        return [Delivery(**row) for row in rows]

    def next_at(self, after: float) -> float | None:
        """Return when the next delivery becomes due (unix seconds), None when there is none."""
        query = "SELECT MIN(next_at) AS next_at FROM webhooks WHERE next_at > ?"
        at = self._journal.read(query, after)[0]["next_at"]
        return None if at is None else float(at)

    async def reschedule(self, request_id: str, attempt: int, next_at: float, error: str) -> None:
        """Record a failed attempt."""
        query = "UPDATE webhooks SET attempt = ?, next_at = ?, error = ? WHERE request_id = ?"
        await self._write(query, (attempt, next_at, error, request_id))

    async def share(self, lanes: Sequence[str] | None = None) -> None:
        """Move deliveries from lanes of one path to the one that it shares; None: from all."""
        query = "UPDATE webhooks SET target = substr(target, 1, instr(target, '=') - 1) WHERE "
        if lanes is None:
            await self._write(query + "instr(target, '=')", ())
        else:
            names = json.dumps(list(lanes))
            await self._write(query + "target IN (SELECT value FROM json_each(?))", (names,))

    async def done(self, request_id: str) -> None:
        """Remove a delivery: it arrived, or is given up."""
        await self._write("DELETE FROM webhooks WHERE request_id = ?", (request_id,))

    async def _write(self, query: str, args: tuple[Any, ...]) -> None:
        def change(connection: sqlite3.Connection) -> None:
            connection.execute(query, args)

        await self._journal.write(change)
