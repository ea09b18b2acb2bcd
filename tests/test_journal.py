"""Group commit: what was written is on disk, what failed left nothing, nobody waits for ever."""

from __future__ import annotations

import asyncio
import functools
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from serving import small_file_system

from fal_notebook.exceptions import DiskFullError, StoreError
from fal_notebook.gateway.queue.journal import Journal

SCHEMA = "CREATE TABLE things (id INTEGER PRIMARY KEY, content BLOB);"


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    journal = Journal(tmp_path / "j.db", [SCHEMA])
    yield journal
    journal.close()


def put(database: sqlite3.Connection, number: int, content: bytes = b"") -> int:
    database.execute("INSERT INTO things VALUES (?, ?)", (number, content))
    return number


def putting(number: int, content: bytes = b"") -> functools.partial[int]:
    return functools.partial(put, number=number, content=content)


def ids(path: Path) -> list[int]:
    """Return what another connection sees."""
    with sqlite3.connect(path) as database:
        found = [row[0] for row in database.execute("SELECT id FROM things ORDER BY id")]
    database.close()
    return found


async def test_a_change_is_committed_when_write_returns(journal: Journal, tmp_path: Path) -> None:
    for number in range(5):
        assert await journal.write(putting(number)) == number
        assert ids(tmp_path / "j.db") == list(range(number + 1))
        assert len(journal.read("SELECT id FROM things")) == number + 1


async def test_changes_are_applied_in_order_and_share_commits(journal: Journal) -> None:
    order: list[int] = []

    def change(database: sqlite3.Connection, number: int) -> int:
        order.append(number)
        return database.total_changes

    writes = [journal.write(functools.partial(change, number=n)) for n in range(1000)]
    await asyncio.gather(*writes)
    assert order == list(range(1000))


async def test_a_change_that_fails_takes_no_other_along(journal: Journal, tmp_path: Path) -> None:
    def half(database: sqlite3.Connection) -> None:
        put(database, 100)
        raise KeyError("a bug")

    def wrong(database: sqlite3.Connection) -> None:
        put(database, 101)
        database.execute("INSERT INTO nowhere VALUES (1)")

    changes = [putting(1), half, putting(2), putting(1), wrong, putting(3)]
    done = await asyncio.gather(*map(journal.write, changes), return_exceptions=True)
    assert ids(tmp_path / "j.db") == [1, 2, 3]
    assert [type(x) for x in done] == [int, KeyError, int, StoreError, StoreError, int]


async def test_a_locked_file_fails_the_change_and_not_the_journal(
    journal: Journal, tmp_path: Path
) -> None:
    other = sqlite3.connect(tmp_path / "j.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="locked"):
        await journal.write(putting(1))
    other.execute("ROLLBACK")
    other.close()
    assert await journal.write(putting(2)) == 2
    assert ids(tmp_path / "j.db") == [2]


async def test_who_gives_up_waiting_disturbs_nobody(journal: Journal, tmp_path: Path) -> None:
    tasks = [asyncio.ensure_future(journal.write(putting(n))) for n in range(20)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert [t.cancelled() for t in tasks] == [True, False] * 10
    assert await journal.write(putting(99)) == 99
    assert set(ids(tmp_path / "j.db")) >= {*range(1, 20, 2), 99}


async def test_closing_writes_what_was_asked_for_and_refuses_the_rest(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.db", [SCHEMA])
    tasks = [asyncio.ensure_future(journal.write(putting(n))) for n in range(600)]
    await asyncio.sleep(0)
    journal.close()
    assert await asyncio.gather(*tasks) == list(range(600))
    assert ids(tmp_path / "j.db") == list(range(600))
    with pytest.raises(StoreError, match="closed"):
        await journal.write(putting(1000))
    with pytest.raises(StoreError):
        journal.read("SELECT 1")
    journal.close()  # again does nothing


LOOK = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1])
print([row[0] for row in database.execute("SELECT id FROM things ORDER BY id")])
database.close()
"""


async def test_another_process_that_looks_and_goes_does_no_harm(
    journal: Journal, tmp_path: Path
) -> None:
    def look() -> str:
        command = [sys.executable, "-c", LOOK, str(tmp_path / "j.db")]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    await journal.write(putting(1))
    assert look() == "[1]"
    await journal.write(putting(2))
    assert (tmp_path / "j.db-wal").exists()
    assert look() == "[1, 2]"


FULL = f"""
import asyncio, resource, sqlite3, sys
from pathlib import Path
from fal_notebook.exceptions import DiskFullError, StoreError
from fal_notebook.gateway.queue.journal import Journal
path = Path(sys.argv[1])
def put(number, size):
    def change(database):
        database.execute("INSERT INTO things VALUES (?, ?)", (number, bytes(size)))
    return change
async def main():
    journal = Journal(path, [{SCHEMA!r}])
    await journal.write(put(1, 10))
    if len(sys.argv) > 2:  # no file may grow
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
    changes = [put(2, 10), put(3, 2_000_000), put(4, 10)]
    done = await asyncio.gather(*map(journal.write, changes), return_exceptions=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    print([type(x).__name__ for x in done], [r[0] for r in journal.read("SELECT id FROM things")])
    await journal.write(put(5, 10))
    print([r[0] for r in journal.read("SELECT id FROM things")])
    journal.close()
asyncio.run(main())
"""


def run(*arguments: object) -> list[str]:
    command = [sys.executable, "-c", FULL, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.linux  # for a small file system
def test_a_full_disk_fails_all_that_share_the_commit(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    with small_file_system(folder, "512k"):
        assert run(folder / "j.db") == [f"{['DiskFullError'] * 3} [1]", "[1, 5]"]


def test_a_file_that_may_not_grow_fails_what_does_not_fit(tmp_path: Path) -> None:
    first, second = run(tmp_path / "j.db", "limited")
    assert first.endswith("[1]")
    assert second == "[1, 5]"


def test_a_full_disk_is_a_kind_of_store_error() -> None:
    assert issubclass(DiskFullError, StoreError)
