"""What is known of queued requests: rows in the journal, and the files of big bodies beside it."""

from __future__ import annotations

import asyncio
import functools
import sqlite3
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

from fal_notebook.gateway import clock
from fal_notebook.gateway.queue import content, table
from fal_notebook.gateway.queue.journal import Journal
from fal_notebook.gateway.queue.table import Answer, QueuedRequest
from fal_notebook.gateway.webhooks import table as webhooks
from fal_notebook.gateway.webhooks.targets import parse

MIGRATIONS = (table.SCHEMA + webhooks.SCHEMA,)
# So many forgotten requests share one change, and the rest after it is so many times as long.
FORGOTTEN_AT_ONCE = 50
REST = 4


class Records:
    """Every queued request, from its acceptance until it is forgotten.

    What writes is durable when it returns.

    Parameters
    ----------
    state : Path
        The state folder.

    Attributes
    ----------
    lane_of : callable
        Gives the target of a webhook's URL.
    """

    def __init__(self, state: Path) -> None:
        self.journal = Journal(state / "queue.db", MIGRATIONS)
        self._folder = state / "queue"
        self._state = state
        self.lane_of: Callable[[str], str] = lambda url: parse(url).lane
        self._last: int = self.journal.read("SELECT COALESCE(MAX(number), 0) FROM requests")[0][0]

    # --- one request, as its life goes -------------------------------------------------------
    def number(self) -> int:
        """Return the number of a request that arrives now."""
        self._last = max(self._last + 1, int(clock.now() * 1e6))
        return self._last

    def spool(self, request_id: str) -> content.Spool:
        """Return what takes in the body of a request."""
        return content.Spool(self._body_path(request_id))

    async def accept(self, request: QueuedRequest, body: bytes | None) -> None:
        """Record a new request; its body is None when it was spooled to a file.

        Raises
        ------
        DiskFullError
            When there is no room; nothing of it stays.
        """
        await self.journal.write(functools.partial(table.insert, request=request, body=body))

    async def begin(self, request: QueuedRequest, runner: str) -> None:
        """Record that the runner of this id gets the request now."""
        number, attempt = request.number, request.attempts
        await self.journal.write(
            lambda database: table.begin(database, number, runner, attempt, clock.now())
        )

    async def put_back(self, request: QueuedRequest) -> None:
        """Record that the request waits again."""
        number, attempts = request.number, request.attempts
        await self.journal.write(lambda database: table.put_back(database, number, attempts))

    async def cancel(self, request: QueuedRequest) -> None:
        """Record that nobody wants the answer any more."""
        await self.journal.write(functools.partial(table.cancel, number=request.number))

    async def complete(self, request: QueuedRequest, answer: Answer, now: float) -> None:
        """Record the answer, and the webhook that tells of it."""
        url = request.webhook
        lane = self.lane_of(url) if url else ""

        def change(database: sqlite3.Connection) -> None:
            table.complete(database, request.number, answer, now)
            if url:
                webhooks.add(database, request.id, request.user or "", url, lane, now)

        await self.journal.write(change)

    # --- asking ------------------------------------------------------------------------------
    def find(self, request_id: str) -> QueuedRequest | None:
        """Return a request, None when there is none of this id."""
        rows = self.journal.read(table.SELECT + "id = ?", request_id)
        return table.load(rows[0]) if rows else None

    async def ids(self, owner: str, app: str, part: str) -> set[str]:
        """Return ids of an app's requests that begin or end with `part`; a look at every id."""
        found = self.find(part)
        if found is not None and (found.owner, found.app) == (owner, app):
            return {part}
        return await asyncio.to_thread(table.ids, self._state / "queue.db", owner, app, part)

    def load(self, number: int) -> QueuedRequest:
        """Return the request of a number that was given out."""
        return table.load(self.journal.read(table.SELECT + "number = ?", number)[0])

    def unfinished(self) -> list[QueuedRequest]:
        """Return the requests that are not completed, in order of arrival."""
        return [table.load(row) for row in self.journal.read(table.UNFINISHED)]

    def body(self, request: QueuedRequest) -> AsyncGenerator[bytes, None]:
        """Return the body of a request, in pieces."""
        rows = self.journal.read("SELECT content FROM bodies WHERE number = ?", request.number)
        return content.pieces(rows[0]["content"], self._body_path(request.id))

    def discard_body(self, request: QueuedRequest) -> None:
        """Remove the file that holds the body of a completed request, if one does."""
        self._body_path(request.id).unlink(missing_ok=True)

    def answer(self, request: QueuedRequest) -> Answer:
        """Return what a completed request was answered."""
        query = "SELECT status, headers, content FROM answers WHERE number = ?"
        return table.load_answer(self.journal.read(query, request.number)[0])

    def answer_content(
        self, request: QueuedRequest, answer: Answer
    ) -> tuple[int, AsyncGenerator[bytes, None]]:
        """Return the length of an answer's body, and the body in pieces."""
        path = self.answer_path(request.id)
        return content.size(answer.content, path), content.pieces(answer.content, path)

    def answer_path(self, request_id: str) -> Path:
        """Return where an answer lies that is too big for the journal."""
        return self._folder / f"{request_id}.answer"

    # --- keeping house -----------------------------------------------------------------------
    def sweep(self) -> None:
        """Remove what was being accepted, or forgotten, as the gateway died, and spent bodies."""
        for path in self._folder.glob("*.*"):
            request = self.find(path.stem)
            spent = request is not None and request.state == table.COMPLETED
            if request is None or (spent and path == self._body_path(request.id)):
                path.unlink(missing_ok=True)

    async def forget(self, before: float) -> None:
        """Forget requests that were completed before `before` (unix seconds).

        A few at a time, with rests between, for those who submit wait for the same disk.
        """
        change = functools.partial(table.forget, before=before, limit=FORGOTTEN_AT_ONCE)
        began = time.monotonic()
        while ids := await self.journal.write(change):
            for request_id in ids:
                self._body_path(request_id).unlink(missing_ok=True)
                self.answer_path(request_id).unlink(missing_ok=True)
            await asyncio.sleep(REST * (time.monotonic() - began))
            began = time.monotonic()

    def close(self) -> None:
        """Write what was asked for before, then close."""
        self.journal.close()

    def _body_path(self, request_id: str) -> Path:
        return self._folder / f"{request_id}.body"
