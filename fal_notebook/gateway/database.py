"""SQLite files of the gateway: opened, migrated, and their errors translated; in one place."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

from fal_notebook.exceptions import DiskFullError, StoreError

# The header of a log (https://sqlite.org/fileformat2.html#walformat) has so many bytes.
_HEADER = 32
# Each connection keeps so many KiB of its file; the system keeps the rest. Of SQLite's usual 2 MB
# all are taken in the end, which looks like a leak for the first hour.
_CACHE = 512
# A file of so many bytes at most is read as a whole when it is opened (0.2 s).
_CHECKED = 256 * 1024 * 1024


@contextlib.contextmanager
def io_errors(folder: Path, name: str = "") -> Iterator[None]:
    """Translate errors of SQLite and of the file system in a folder, or in one file of it."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        if _is_full(error):
            message = f"no room is left in {folder}: free space on its disk and try again"
            raise DiskFullError(message) from None
        if type(error) is sqlite3.DatabaseError:  # its subclasses have other causes
            raise damaged(folder / name, str(error)) from None
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
        When it cannot be used. Whether it is newer or damaged is `examine`'s to say, before.
    """
    with io_errors(path.parent, path.name):
        # A file that another connection of this process has open must not be opened and closed:
        # that drops its locks, and who looks from outside then removes the log that is written to.
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        database = sqlite3.connect(
            path, timeout=1.0, isolation_level=None, check_same_thread=not any_thread
        )
        database.row_factory = sqlite3.Row
        try:
            _migrate(database, migrations)
            database.execute(f"PRAGMA synchronous = {synchronous}")
            database.execute(f"PRAGMA cache_size = -{_CACHE}")
        except BaseException:
            database.close()
            raise
    return database


def examine(path: Path, known: int) -> None:
    """Refuse a file that is newer or damaged, or whose log (``-wal``) is.

    It is opened to be read only: any other connection moves the log into the file as it closes.
    Of a log that ends too early, all that was complete counts.

    Parameters
    ----------
    known : int
        The newest version of its schema that is known here.

    Raises
    ------
    StoreError
        When it is so; the file and its log are left untouched.
    """
    log = path.with_name(f"{path.name}-wal")
    with io_errors(path.parent, path.name):
        if _has_no_header(log):
            raise damaged(log, "its header is wrong")
        if not size(path):
            if size(log) > _HEADER:
                raise damaged(log, f"its {path.name} is empty or gone")
            return
        # Where there is no log, SQLite is not to make one beside a file that is only looked at.
        uri = f"{path.absolute().as_uri()}?{'mode=ro' if log.exists() else 'immutable=1'}"
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as database:
            _read_through(database, path, known)


def _read_through(database: sqlite3.Connection, path: Path, known: int) -> None:
    found = database.execute("PRAGMA user_version").fetchone()[0]
    if found > known:
        raise StoreError(
            f"{path} was written by a newer fal_notebook (schema {found}, here {known}); "
            "upgrade it or set FAL_NOTEBOOK_STATE to another folder"
        )
    if size(path) <= _CHECKED:
        said = database.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if said != "ok":
            raise damaged(path, said.removeprefix("*** in database main ***").strip())


def _has_no_header(log: Path) -> bool:
    """Say whether the header of a log is broken; SQLite would take such a log for an empty one.

    One of zeros is what a machine leaves that lost its power before the log was on its disk.
    """
    if size(log) < _HEADER:
        return False
    with log.open("rb") as file:
        header = file.read(_HEADER)
    if not any(header):
        return False
    order = ">" if header[3] & 1 else "<"
    first = second = 0
    for one, other in struct.iter_unpack(f"{order}2I", header[:24]):
        first = (first + one + second) & 0xFFFFFFFF
        second = (second + other + first) & 0xFFFFFFFF
    return struct.unpack(">2I", header[24:]) != (first, second)


def size(path: Path) -> int:
    """Return the size of a file, 0 where there is none."""
    return path.stat().st_size if path.exists() else 0


def damaged(place: Path, reason: str) -> StoreError:
    """Return the refusal of a damaged file, which says what to do."""
    return StoreError(
        f"{place} is damaged ({reason}) and stays as it is: put back a copy of it and of what "
        "stands beside it, or move it elsewhere to go on without what it holds"
    )


def _migrate(database: sqlite3.Connection, migrations: Sequence[str]) -> None:
    found = database.execute("PRAGMA user_version").fetchone()[0]
    database.execute("PRAGMA journal_mode = WAL")
    for version, migration in enumerate(migrations[found:], found + 1):
        database.executescript(f"BEGIN; {migration} PRAGMA user_version = {version}; COMMIT;")
