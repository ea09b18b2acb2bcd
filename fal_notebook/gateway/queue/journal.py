"""Group commit: many changes of the queue become one durable transaction, in a thread of its own.

A change is a function of the connection. It is on disk when `write` returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from fal_notebook.exceptions import DiskFullError, StoreError
from fal_notebook.gateway.database import connect, io_errors

T = TypeVar("T")

# So many changes at most share one commit.
LARGEST_BATCH = 256


@dataclass(eq=False)
class _Change:
    """One change and what became of it."""

    apply: Callable[[sqlite3.Connection], Any]
    done: asyncio.Future[Any]
    value: Any = None
    error: Exception | None = field(default=None)


class Journal:
    """The queue's database: read on the event loop, written by a thread.

    Parameters
    ----------
    path : Path
        The file; made when it is missing.
    migrations : sequence of str
        As in `database.connect`.
    """

    def __init__(self, path: Path, migrations: Sequence[str]) -> None:
        self._folder = path.parent
        self._writer = connect(path, migrations, synchronous="FULL", any_thread=True)
        self._reader = connect(path, migrations)
        self._reader.execute("PRAGMA query_only = ON")
        self._loop = asyncio.get_running_loop()
        self._changes: queue.SimpleQueue[_Change | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._commit_all, name="fal-queue", daemon=True)
        self._thread.start()

    async def write(self, change: Callable[[sqlite3.Connection], T]) -> T:
        """Apply a change and return its value when it is on disk.

        Raises
        ------
        StoreError
            When it could not be written; nothing of it was.
        DiskFullError
            When there is no room for it.
        """
        if self._closed:
            raise StoreError("the gateway's queue is closed: the gateway ends")
        done: asyncio.Future[Any] = self._loop.create_future()
        self._changes.put(_Change(change, done))
        return cast(T, await done)

    def read(self, query: str, *arguments: Any) -> list[sqlite3.Row]:
        """Return the rows that a query finds among what has been committed."""
        with io_errors(self._folder):
            return self._reader.execute(query, arguments).fetchall()

    def close(self) -> None:
        """Write what was asked for before, then close the file."""
        if self._closed:
            return
        self._closed = True
        self._changes.put(None)
        self._thread.join()
        self._writer.close()
        self._reader.close()

    # --- the writing thread ------------------------------------------------------------------
    def _commit_all(self) -> None:
        while (first := self._changes.get()) is not None:
            batch = [first]
            while len(batch) < LARGEST_BATCH and not self._changes.empty():
                change = self._changes.get()
                if change is None:
                    self._changes.put(None)  # the loop ends after this batch
                    break
                batch.append(change)
            self._commit(batch)
            self._loop.call_soon_threadsafe(_tell, batch)

    def _commit(self, batch: list[_Change]) -> None:
        """Commit a batch; one change that fails takes no other with it, a full disk all."""
        try:
            with io_errors(self._folder):
                self._writer.execute("BEGIN IMMEDIATE")
                for change in batch:
                    self._apply(change)
                self._writer.execute("COMMIT")
        except StoreError as error:
            if self._writer.in_transaction:  # SQLite itself rolls back when the disk is full
                with contextlib.suppress(sqlite3.Error):
                    self._writer.execute("ROLLBACK")
            for change in batch:
                change.error = error

    def _apply(self, change: _Change) -> None:
        self._writer.execute("SAVEPOINT change")
        try:
            with io_errors(self._folder):
                change.value = change.apply(self._writer)
        except DiskFullError:
            raise
        except Exception as error:
            change.error = error
            self._writer.execute("ROLLBACK TO change")
        self._writer.execute("RELEASE change")


def _tell(batch: list[_Change]) -> None:
    for change in batch:
        if change.done.done():  # nobody waits any more
            continue
        if change.error is not None:
            change.done.set_exception(change.error)
        else:
            change.done.set_result(change.value)
