"""What is known of each stored file: one row, in a database beside the files."""

from __future__ import annotations

import time
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path

from fal_notebook.gateway.database import connect, io_errors

MIGRATIONS = (
    """
CREATE TABLE files (
  id TEXT PRIMARY KEY, owner TEXT NOT NULL, name TEXT NOT NULL, content_type TEXT NOT NULL,
  expires_at REAL, size INTEGER, created_at REAL NOT NULL);
CREATE INDEX files_by_expiry ON files (expires_at);
""",
)


@dataclass(frozen=True)
class StoredFile:
    """One file; `expires_at` None: it is kept, `size` None: its content has not come yet."""

    id: str
    owner: str
    name: str
    content_type: str
    expires_at: float | None
    size: int | None = None
    created_at: float = field(default_factory=time.time)

    def is_over(self, now: float) -> bool:
        """Say whether it has expired."""
        return self.expires_at is not None and self.expires_at <= now


_MARKS = ", ".join("?" * len(fields(StoredFile)))


class FileTable:
    """The rows; used from the gateway's event loop only."""

    def __init__(self, path: Path) -> None:
        self._folder = path.parent
        self._db = connect(path, MIGRATIONS)

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    def put(self, file: StoredFile) -> None:
        """Add or replace a row."""
        with io_errors(self._folder):
            self._db.execute(f"INSERT OR REPLACE INTO files VALUES ({_MARKS})", astuple(file))

    def find(self, identity: str) -> StoredFile | None:
        """Return a file by its id, or None."""
        return next(iter(self._select("id = ?", identity)), None)

    def delete(self, identity: str) -> None:
        """Remove a row."""
        with io_errors(self._folder):
            self._db.execute("DELETE FROM files WHERE id = ?", (identity,))

    def over(self, now: float, begun_before: float) -> list[StoredFile]:
        """Return files that have expired, and uploads begun before this that never ended."""
        condition = "expires_at <= ? OR (size IS NULL AND created_at < ?)"
        return self._select(condition, now, begun_before)

    def older(self, before: float) -> list[StoredFile]:
        """Return files, and uploads that never ended, that were begun before a time."""
        return self._select("created_at <= ?", before)

    def ids(self) -> set[str]:
        """Return the ids of all files."""
        with io_errors(self._folder):
            return {row[0] for row in self._db.execute("SELECT id FROM files")}

    def total(self) -> int:
        """Return the bytes of all files."""
        with io_errors(self._folder):
            return int(self._db.execute("SELECT COALESCE(SUM(size), 0) FROM files").fetchone()[0])

    def _select(self, where: str, *arguments: object) -> list[StoredFile]:
        with io_errors(self._folder):
            found = self._db.execute(f"SELECT * FROM files WHERE {where}", arguments)
            return [StoredFile(*row) for row in found]
