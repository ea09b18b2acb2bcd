"""SQLite files of the gateway: opened, migrated, and their errors translated; in one place."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

from fal_notebook.exceptions import DiskFullError, StoreError


@contextlib.contextmanager
def io_errors(folder: Path) -> Iterator[None]:
    """Translate errors of SQLite and of the file system in a folder: full, or not usable."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        if _is_full(error):
            message = f"no room is left in {folder}: free space on its disk and try again"
            raise DiskFullError(message) from None
        raise StoreError(f"the gateway's state in {folder}: {error}") from error


def _is_full(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return "full" in str(error)


def connect(
    path: Path, migrations: Sequence[str], synchronous: str = "NORMAL", any_thread: bool = False
) -> sqlite3.Connection:
    """Open a database in WAL mode, made with mode 0600 when it is missing.

    Parameters
    ----------
    migrations : sequence of str
        SQL that leads from each version of the schema to the next, the first from an empty file.
        The file keeps its version; what is missing is run, each in a transaction. Those that were
        released never change.
    synchronous : str
        NORMAL survives the end of the process, FULL that of the machine.
    any_thread : bool
        Whether another thread than this one will use the connection.

    Raises
    ------
    StoreError
        When the file was written by a newer version (it is left untouched) or cannot be used.
    """
    with io_errors(path.parent):
        # A file that another connection of this process has open must not be opened and closed:
        # that drops its locks, and who looks from outside then removes the log that is written to.
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        database = sqlite3.connect(
            path, timeout=1.0, isolation_level=None, check_same_thread=not any_thread
        )
        database.row_factory = sqlite3.Row
        try:
            _migrate(database, path, migrations)
            database.execute(f"PRAGMA synchronous = {synchronous}")
        except BaseException:
            database.close()
            raise
    return database


def _migrate(database: sqlite3.Connection, path: Path, migrations: Sequence[str]) -> None:
    found = database.execute("PRAGMA user_version").fetchone()[0]
    if found > len(migrations):
        raise StoreError(
            f"{path} was written by a newer fal_notebook (schema {found}, here "
            f"{len(migrations)}); upgrade it or set FAL_NOTEBOOK_STATE to another folder"
        )
    database.execute("PRAGMA journal_mode = WAL")
    for version, migration in enumerate(migrations[found:], found + 1):
        database.executescript(f"BEGIN; {migration} PRAGMA user_version = {version}; COMMIT;")
