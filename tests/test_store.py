"""The store: transactions, versions, rows that survive, errors with names."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest

from fal_notebook.exceptions import DiskFullError, StoreError
from fal_notebook.gateway import schemas
from fal_notebook.gateway.database import connect
from fal_notebook.gateway.store import (
    EVENTS_KEPT,
    MIGRATIONS,
    App,
    Caller,
    Env,
    ErrorGroup,
    Event,
    Key,
    Revision,
    RunnerRow,
    Secret,
    Store,
)

# What the first version of the gateway wrote.
VERSION_1 = """
CREATE TABLE apps (
  owner TEXT NOT NULL, name TEXT NOT NULL, revision TEXT, notebook TEXT NOT NULL,
  scaling TEXT NOT NULL, created_at REAL NOT NULL, PRIMARY KEY (owner, name));
CREATE TABLE revisions (
  id TEXT PRIMARY KEY, owner TEXT NOT NULL, app TEXT NOT NULL, number INTEGER NOT NULL,
  state TEXT NOT NULL, digest TEXT NOT NULL, payload TEXT NOT NULL, options TEXT NOT NULL,
  explicit TEXT NOT NULL, manifest TEXT NOT NULL, machine TEXT NOT NULL,
  variables TEXT NOT NULL, environment TEXT NOT NULL,
  openapi TEXT NOT NULL, error TEXT NOT NULL, created_at REAL NOT NULL,
  UNIQUE (owner, app, number));
CREATE TABLE runners (
  id TEXT PRIMARY KEY, owner TEXT NOT NULL, app TEXT NOT NULL, revision TEXT NOT NULL,
  state TEXT NOT NULL, cause TEXT NOT NULL, address TEXT NOT NULL, secret TEXT NOT NULL,
  process TEXT NOT NULL, machine_type TEXT NOT NULL, created_at REAL NOT NULL,
  ready_at REAL, ended_at REAL);
CREATE INDEX runners_by_app ON runners (owner, app, created_at);
CREATE TABLE keys (
  id TEXT PRIMARY KEY, hash TEXT NOT NULL, user TEXT NOT NULL, scope TEXT NOT NULL,
  alias TEXT NOT NULL, created_at REAL NOT NULL, revoked_at REAL);
CREATE TABLE events (
  seq INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, kind TEXT NOT NULL,
  owner TEXT NOT NULL, app TEXT NOT NULL, data TEXT NOT NULL);
CREATE INDEX events_by_app ON events (owner, app, seq);
CREATE TABLE secrets (name TEXT PRIMARY KEY, value TEXT NOT NULL, set_at REAL NOT NULL);
CREATE TABLE notes (name TEXT PRIMARY KEY, value TEXT NOT NULL);
PRAGMA user_version = 1;
"""


def app(name: str = "app") -> App:
    return App("me", name, "r1", "notebook.ipynb", {"keep_alive": 5})


def revision(identity: str = "r1", number: int = 1, payload: str = "p") -> Revision:
    return Revision(identity, "me", "app", number, "ACTIVE", "d", payload, {}, {}, {}, {})


def test_it_is_a_wal_database_of_its_user_only(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.db")
    with store.transaction():
        store.put(app())
    for path in tmp_path.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600, path
    assert (tmp_path / "store.db-wal").exists()
    store.close()


def test_rows_survive_as_they_were(tmp_path: Path) -> None:
    rows = [
        app(),
        revision(),
        RunnerRow("x", "me", "app", "r1", "IDLE", "s", "XS", process={"pid": 1, "created": 2.5}),
        Key("k", "hash", "me", "API"),
        Env("staging"),
        Secret("WORD", "encrypted", "staging"),
    ]
    store = Store(tmp_path / "store.db")
    with store.transaction():
        for row in rows:
            store.put(row)
    note = store.note("n", lambda: "first")
    store.close()
    store = Store(tmp_path / "store.db")
    assert [store.select(type(row))[0] for row in rows] == rows
    assert store.note("n", lambda: "second") == note
    store.close()


def test_a_file_of_the_first_version_is_migrated_once(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "store.db")) as old:
        old.executescript(VERSION_1)
        row = ("me", "app", "r1", "notebook.ipynb", json.dumps({"keep_alive": 5}), 1.5)
        old.execute("INSERT INTO apps VALUES (?, ?, ?, ?, ?, ?)", row)
        old.execute("INSERT INTO secrets VALUES ('WORD', 'encrypted', 2.5)")
        old.commit()
    for _ in range(2):
        store = Store(tmp_path / "store.db")
        (found,) = store.select(App)
        assert (found.name, found.scaling, found.created_at) == ("app", {"keep_alive": 5}, 1.5)
        assert store.select(ErrorGroup) == []
        assert store.select(Secret) == [Secret("WORD", "encrypted", "main", 2.5)]
        store.add_caller(Caller("me", "app", "bob", 1, 3.5, 3.5))
        callers = store.select(Caller)
        store.close()
    assert callers == [Caller("me", "app", "bob", 2, 3.5, 3.5)]
    with contextlib.closing(sqlite3.connect(tmp_path / "store.db")) as new:
        assert new.execute("PRAGMA user_version").fetchone()[0] == len(MIGRATIONS)


def test_a_migration_that_fails_changes_nothing(tmp_path: Path) -> None:
    first = "CREATE TABLE a (x);"
    connect(tmp_path / "x.db", [first]).close()
    with pytest.raises(StoreError, match="already exists"):
        connect(tmp_path / "x.db", [first, "CREATE TABLE b (x); CREATE TABLE a (x);"])
    database = connect(tmp_path / "x.db", [first])
    names = [row["name"] for row in database.execute("SELECT name FROM sqlite_master")]
    assert names == ["a"]
    database.close()


def test_a_newer_schema_is_refused_and_left_untouched(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    Store(path).close()
    with sqlite3.connect(path) as database:
        database.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    database.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="newer fal_notebook"):
        schemas.examine(tmp_path)
    assert path.read_bytes() == before


def test_a_file_that_is_no_database_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "store.db").write_bytes(b"not a database, " * 100)
    with pytest.raises(StoreError, match="not a database"):
        schemas.examine(tmp_path)
    with pytest.raises(StoreError):
        Store(tmp_path)


def _fail_halfway(store: Store) -> None:
    with store.transaction():
        store.put(app())
        store.emit("deploy", "me", "app", {})
        with store.transaction():
            store.put(revision())
        raise RuntimeError


def test_an_error_inside_a_transaction_leaves_nothing(tmp_path: Path) -> None:
    store, heard = Store(tmp_path / "store.db"), list[Event]()
    store.followers.append(heard.append)
    with pytest.raises(RuntimeError):
        _fail_halfway(store)
    assert (store.select(App), store.select(Revision), store.events(0), heard) == ([], [], [], [])
    store.emit("deploy", "me", "app", {})
    assert len(heard) == 1
    store.close()


def test_followers_hear_after_the_commit_and_cannot_break_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, seen = Store(tmp_path / "store.db"), list[int]()

    def broken(event: Event) -> None:
        raise RuntimeError("a follower's own error")

    store.followers += [broken, lambda event: seen.append(len(store.select(App)))]
    with store.transaction():
        store.put(app())
        store.emit("deploy", "me", "app", {})
        assert seen == []
    assert seen == [1]
    assert "a follower of events failed" in caplog.text
    store.close()


def test_a_full_disk_is_an_error_of_ours_and_the_store_goes_on(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.db")
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(DiskFullError), store.transaction():
        store.put(revision(payload="x" * 100_000))
    assert store.select(Revision) == []
    store._db.execute("PRAGMA max_page_count = 100000")
    with store.transaction():
        store.put(revision(payload="x" * 100_000))
    assert len(store.select(Revision)) == 1
    store.close()


def test_old_events_go(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.db")
    with store.transaction():
        for _ in range(EVENTS_KEPT + 2000):
            store.emit("runner", "me", "app", {})
    events = store.events(0)
    assert EVENTS_KEPT <= len(events) <= EVENTS_KEPT + 1000
    assert events[-1].seq == store.last_seq() == EVENTS_KEPT + 2000
    store.close()


def test_events_are_found_by_number_owner_and_app(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.db")
    for owner, name in (("me", "a"), ("me", "b"), ("you", "a"), ("me", "a")):
        store.emit("runner", owner, name, {})
    assert [e.seq for e in store.events(0)] == [1, 2, 3, 4]
    assert [e.seq for e in store.events(1, "me", "a")] == [4]
    assert [e.seq for e in store.events(0, "me")] == [1, 2, 4]
    store.close()


def test_a_deleted_app_frees_the_payloads_that_no_other_uses(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.db")
    other = Revision("o", "me", "other", 1, "ACTIVE", "d", "shared", {}, {}, {}, {})
    with store.transaction():
        for row in (app(), revision(), revision("r2", 2, "shared"), other):
            store.put(row)
        assert store.next_number("me", "app") == 3
        assert store.delete_app("me", "app") == ["p"]
    assert store.app("me", "app") is None
    assert [r.id for r in store.select(Revision)] == ["o"]
    store.close()


def test_runners_that_ended_long_ago_are_forgotten(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.db")
    with store.transaction():
        for identity, ended in (("old", 10.0), ("new", 30.0), ("alive", None)):
            row = RunnerRow(identity, "me", "app", "r1", "IDLE", "s", "XS", ended_at=ended)
            store.put(row)
        assert store.forget_runners(20.0) == ["old"]
    assert {row.id for row in store.select(RunnerRow)} == {"new", "alive"}
    store.close()


def test_keeping_house_reads_no_revision_as_a_whole(tmp_path: Path) -> None:
    store, large = Store(tmp_path / "store.db"), {"source": "x" * 100_000}
    with store.transaction():
        for n in range(50):
            named = revision(f"r{n}", n, f"p{n}")
            store.put(replace(named, manifest={**large, **({"context": "c"} if n else {})}))
            store.put(RunnerRow(f"{n}", "me", "app", f"r{n}", "TERMINATED", "s", "XS", ended_at=n))
        store.put(RunnerRow("lost", "me", "b", "gone", "TERMINATED", "s", "XS", ended_at=9e9))
    tracemalloc.start()
    try:
        files, ended = store.blobs(), store.ended_runners()
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
    assert files == {"c", *(f"p{n}" for n in range(50))}
    assert store.blobs("id = ?", "r0") == {"p0"}
    assert ended == [*((f"{n}", True) for n in range(50)), ("lost", False)]
    store.close()


def test_after_a_checkpoint_the_file_alone_holds_everything(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.db")
    store.put(app())
    store.checkpoint()
    shutil.copy(tmp_path / "store.db", tmp_path / "alone.db")
    alone = Store(tmp_path / "alone.db")
    assert [each.name for each in alone.select(App)] == ["app"]
    alone.close()
    store.close()
