"""The gateway's state in SQLite (WAL): apps, revisions, runners, keys, events; its only owner.

Every change is one transaction together with the event that tells of it. Followers of events are
called after the commit.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from fal_notebook.envs import MAIN
from fal_notebook.exceptions import NotFoundError
from fal_notebook.gateway.database import connect, io_errors

log = logging.getLogger(__name__)

EVENTS_KEPT = 10_000
# Where a runner is that was asked to be nowhere else.
LOCAL_REGION = "local"

_FIRST = """
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
"""
_ERRORS = """
CREATE TABLE errors (
  owner TEXT NOT NULL, app TEXT NOT NULL, type TEXT NOT NULL, place TEXT NOT NULL,
  count INTEGER NOT NULL, first_seen REAL NOT NULL, last_seen REAL NOT NULL,
  request TEXT NOT NULL, message TEXT NOT NULL, traceback TEXT NOT NULL, input TEXT NOT NULL,
  revision INTEGER NOT NULL, PRIMARY KEY (owner, app, type, place));
CREATE INDEX errors_by_time ON errors (owner, app, last_seen);
"""
_RETIRED = """
CREATE TABLE retired_secrets (name TEXT NOT NULL, value TEXT PRIMARY KEY, retired_at REAL NOT NULL);
"""
_TARGETS = "ALTER TABLE revisions ADD COLUMN target TEXT NOT NULL DEFAULT 'local';"
_CREDENTIALS = "ALTER TABLE revisions ADD COLUMN credentials TEXT NOT NULL DEFAULT '';"
_REGIONS = "ALTER TABLE runners ADD COLUMN region TEXT NOT NULL DEFAULT 'local';"
_ORIGINS = "ALTER TABLE revisions ADD COLUMN origin TEXT NOT NULL DEFAULT '';"
_ENVS = """
CREATE TABLE envs (name TEXT PRIMARY KEY, created_at REAL NOT NULL);
ALTER TABLE revisions ADD COLUMN env TEXT NOT NULL DEFAULT 'main';
ALTER TABLE secrets RENAME TO secrets_of_main;
CREATE TABLE secrets (
  env TEXT NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL, set_at REAL NOT NULL,
  PRIMARY KEY (env, name));
INSERT INTO secrets SELECT 'main', name, value, set_at FROM secrets_of_main;
DROP TABLE secrets_of_main;
"""
# Of requests: s1 to s5 count classes of status from 1xx on, l0 to l15 latencies by bucket.
_HISTORY = """
CREATE TABLE history (
  owner TEXT NOT NULL, app TEXT NOT NULL, step INTEGER NOT NULL, at INTEGER NOT NULL,
  endpoint TEXT NOT NULL,
  s1 INTEGER, s2 INTEGER, s3 INTEGER, s4 INTEGER, s5 INTEGER, l0 INTEGER, l1 INTEGER, l2 INTEGER,
  l3 INTEGER, l4 INTEGER, l5 INTEGER, l6 INTEGER, l7 INTEGER, l8 INTEGER, l9 INTEGER, l10 INTEGER,
  l11 INTEGER, l12 INTEGER, l13 INTEGER, l14 INTEGER, l15 INTEGER,
  PRIMARY KEY (owner, app, step, at, endpoint)) WITHOUT ROWID;
"""
_BILLING = """
CREATE TABLE billed (
  owner TEXT NOT NULL, app TEXT NOT NULL, revision INTEGER NOT NULL, machine_type TEXT NOT NULL,
  day TEXT NOT NULL, state TEXT NOT NULL, seconds REAL NOT NULL,
  PRIMARY KEY (owner, app, revision, machine_type, day, state));
CREATE TABLE starts (
  runner TEXT PRIMARY KEY, owner TEXT NOT NULL, app TEXT NOT NULL, revision INTEGER NOT NULL,
  machine_type TEXT NOT NULL, at REAL NOT NULL, queued REAL NOT NULL, build REAL NOT NULL,
  start REAL NOT NULL, setup REAL NOT NULL, first_byte REAL);
CREATE INDEX starts_by_app ON starts (owner, app, at);
"""
_FAILURES = "ALTER TABLE runners ADD COLUMN failures INTEGER NOT NULL DEFAULT 0;"
_CALLERS = """
CREATE TABLE callers (
  owner TEXT NOT NULL, app TEXT NOT NULL, user TEXT NOT NULL, requests INTEGER NOT NULL,
  first_at REAL NOT NULL, last_at REAL NOT NULL, PRIMARY KEY (owner, app, user)) WITHOUT ROWID;
"""
MIGRATIONS = (
    _FIRST,
    _ERRORS,
    _RETIRED,
    _TARGETS,
    _CREDENTIALS,
    _REGIONS,
    _ORIGINS,
    _ENVS,
    _HISTORY,
    _BILLING,
    _FAILURES,
    _CALLERS,
)


@dataclass
class App:
    """An alias: the name under which a revision is reached, and what `scale` changed on it."""

    owner: str
    name: str
    revision: str | None
    notebook: str
    scaling: dict[str, Any] = field(default_factory=dict)
    created_at: float = field(default_factory=time.time)


@dataclass
class Revision:
    """One deployed version of an app.

    `state` is PROVING, ACTIVE, SUPERSEDED or FAILED; `options` are all options, `explicit` those
    that the code gave; `machine` is what a runner gets, `variables` what the kernel passes on,
    encrypted (see `vault`), `environment` what its backend built; `target` names that.
    `credentials` are those of its image, JSON, encrypted. `origin` says of a copy what it was made
    from; `env` is the app's own.
    """

    id: str
    owner: str
    app: str
    number: int
    state: str
    digest: str
    payload: str
    options: dict[str, Any]
    explicit: dict[str, Any]
    manifest: dict[str, Any]
    machine: dict[str, Any]
    variables: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    openapi: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    target: str = "local"
    credentials: str = ""
    origin: str = ""
    env: str = MAIN
    created_at: float = field(default_factory=time.time)

    @property
    def blobs(self) -> set[str]:
        """The SHA-256 of its files: its payload, and what its image takes or its `app_files`."""
        context = self.manifest.get("context")
        return {self.payload, context} if context else {self.payload}

    @property
    def app_files(self) -> str | None:
        """The SHA-256 of the archive of its `app_files`; None when it has none."""
        return self.manifest.get("context") if self.options.get("app_files") else None

    @property
    def direct(self) -> bool:
        """Whether the traffic goes to a server of the user's own (Direct Server Mode)."""
        return self.options.get("exposed_port") is not None and self.manifest.get("kind") != "app"


@dataclass(slots=True)
class RunnerRow:
    """One runner that lives or lived; `process` is what its backend needs to find it again.

    `failures` are the starts of its app that had failed in a row by then, its own among them.
    """

    id: str
    owner: str
    app: str
    revision: str
    state: str
    secret: str
    machine_type: str
    region: str = LOCAL_REGION
    cause: str = ""
    address: str = ""
    process: dict[str, Any] = field(default_factory=dict)
    created_at: float = field(default_factory=time.time)
    ready_at: float | None = None
    ended_at: float | None = None
    failures: int = 0


@dataclass
class Key:
    """A caller's key; only the SHA-256 of its secret is kept (128+ random bits need no salt)."""

    id: str
    hash: str
    user: str
    scope: str
    alias: str = ""
    created_at: float = field(default_factory=time.time)
    revoked_at: float | None = None


@dataclass
class Secret:
    """A stored secret of an environment; `value` is encrypted (see `vault`)."""

    name: str
    value: str
    env: str = MAIN
    set_at: float = field(default_factory=time.time)


@dataclass
class Env:
    """An environment, in fal's sense: apps with secrets of their own. `MAIN` has no row."""

    name: str
    created_at: float = field(default_factory=time.time)


@dataclass
class RetiredSecret:
    """What a secret was before it was replaced or deleted: for logs of before, and nothing else."""

    name: str
    value: str
    retired_at: float = field(default_factory=time.time)


@dataclass
class ErrorGroup:
    """Failures of an app's requests that have type and place in common.

    All from `request` on is of the newest of them.
    """

    owner: str
    app: str
    type: str
    place: str
    count: int
    first_seen: float
    last_seen: float
    request: str
    message: str
    traceback: str
    input: str
    revision: int


@dataclass(frozen=True)
class Billed:
    """Billed seconds of an app's runners in a state on a day (UTC); each GPU counts."""

    owner: str
    app: str
    revision: int
    machine_type: str
    day: str
    state: str
    seconds: float


@dataclass(frozen=True)
class Start:
    """How a runner came up: seconds of each part; `at` is when it was decided (unix seconds).

    `first_byte` is None where no request has waited for the runner, or none was answered.
    """

    runner: str
    owner: str
    app: str
    revision: int
    machine_type: str
    at: float
    queued: float
    build: float
    start: float
    setup: float
    first_byte: float | None


@dataclass(slots=True)
class Caller:
    """How many requests of a user an app has answered, the first and the last when (unix seconds).

    `user` is whose key it was, "" for all who sent none.
    """

    owner: str
    app: str
    user: str
    requests: int
    first_at: float
    last_at: float


@dataclass(frozen=True)
class Event:
    """Something that changed; `seq` orders events over restarts."""

    seq: int
    at: float
    kind: str
    owner: str
    app: str
    data: dict[str, Any]


Row = TypeVar(
    "Row",
    App,
    Revision,
    RunnerRow,
    Key,
    Env,
    Secret,
    RetiredSecret,
    ErrorGroup,
    Billed,
    Start,
    Caller,
)
_TABLES: dict[type, str] = {
    App: "apps",
    Revision: "revisions",
    RunnerRow: "runners",
    Key: "keys",
    Env: "envs",
    Secret: "secrets",
    RetiredSecret: "retired_secrets",
    ErrorGroup: "errors",
    Billed: "billed",
    Start: "starts",
    Caller: "callers",
}
_JSON = frozenset(
    (
        *("scaling", "options", "explicit", "manifest", "machine", "variables", "environment"),
        *("openapi", "process", "data"),
    )
)

_HISTORY_KEY = ("owner", "app", "step", "at", "endpoint")
_COUNTS = (*(f"s{n}" for n in range(1, 6)), *(f"l{n}" for n in range(16)))
# Owner, app, step, time, endpoint and the counts.
HistoryRow = tuple[str, str, int, int, str, Sequence[int]]


class Store:
    """The database; used from the gateway's event loop only.

    Raises
    ------
    StoreError
        When the file cannot be used; `schemas.examine` has refused before what is newer or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.followers: list[Callable[[Event], None]] = []
        self._pending: list[Event] = []
        self._depth = 0
        self._folder = path.parent
        self._db = connect(path, MIGRATIONS)

    def checkpoint(self) -> None:
        """Move the log into the file: of a log that gets damaged, less is lost."""
        self._execute("PRAGMA wal_checkpoint(PASSIVE)")

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    def _execute(
        self, statement: str, arguments: tuple[Any, ...] | dict[str, Any] = ()
    ) -> sqlite3.Cursor:
        with io_errors(self._folder):
            return self._db.execute(statement, arguments)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make all changes inside one transaction; followers hear of them after the commit.

        Inside another transaction it is a part of that one.

        Raises
        ------
        StoreError
            When the changes could not be written; none was made.
        """
        if self._depth:
            yield
            return
        self._execute("BEGIN IMMEDIATE")
        self._depth = 1
        try:
            yield
            self._execute("COMMIT")
        except BaseException:
            self._pending.clear()
            if self._db.in_transaction:  # SQLite itself rolls back when the disk is full
                self._execute("ROLLBACK")
            raise
        finally:
            self._depth = 0
        events, self._pending = self._pending, []
        for event in events:
            self._publish(event)

    def _publish(self, event: Event) -> None:
        """Tell every follower; what is committed stays so, whatever a follower does."""
        for follower in list(self.followers):
            try:
                follower(event)
            except Exception:
                log.exception("a follower of events failed")

    def emit(self, kind: str, owner: str, app: str, data: dict[str, Any]) -> None:
        """Record an event, in the running transaction if there is one."""
        with self.transaction():
            at = time.time()
            cursor = self._execute(
                "INSERT INTO events (at, kind, owner, app, data) VALUES (?, ?, ?, ?, ?)",
                (at, kind, owner, app, json.dumps(data)),
            )
            seq = cursor.lastrowid or 0
            if seq % 1000 == 0:
                self._execute("DELETE FROM events WHERE seq <= ?", (seq - EVENTS_KEPT,))
            self._pending.append(Event(seq, at, kind, owner, app, data))

    def put(self, row: Row) -> None:
        """Insert or replace a row; the caller emits the event inside the same transaction."""
        values = {
            name: json.dumps(value) if name in _JSON else value
            for name, value in asdict(row).items()
        }
        marks = ", ".join("?" * len(values))
        self._execute(
            f"INSERT OR REPLACE INTO {_TABLES[type(row)]} ({', '.join(values)}) VALUES ({marks})",
            tuple(values.values()),
        )

    def select(self, kind: type[Row], where: str = "1", *arguments: Any) -> list[Row]:
        """Return the rows of a table; `where` is SQL of ours, `arguments` fill its marks."""
        names = [f.name for f in fields(kind)]
        found = self._execute(f"SELECT * FROM {_TABLES[kind]} WHERE {where}", arguments)
        return [kind(**{name: _decode(name, row[name]) for name in names}) for row in found]

    def app(self, owner: str, name: str) -> App | None:
        """Return an app, or None."""
        return next(iter(self.select(App, "owner = ? AND name = ?", owner, name)), None)

    def has_revisions(self, owner: str, name: str) -> bool:
        """Say whether an app was ever deployed, or is now, though no revision may have come up."""
        query = "SELECT 1 FROM revisions WHERE owner = ? AND app = ? LIMIT 1"
        return next(iter(self._execute(query, (owner, name))), None) is not None

    def revision(self, revision: str | None) -> Revision | None:
        """Return a revision by its id, or None."""
        return next(iter(self.select(Revision, "id = ?", revision)), None)

    def next_number(self, owner: str, app: str) -> int:
        """Return the number of the app's next revision, counted from 1."""
        query = "SELECT COALESCE(MAX(number), 0) + 1 FROM revisions WHERE owner = ? AND app = ?"
        return int(self._execute(query, (owner, app)).fetchone()[0])

    def delete_app(self, owner: str, name: str) -> list[str]:
        """Remove an app with what belongs to it; return files that nothing uses any more."""
        used = self.blobs("owner = ? AND app = ?", owner, name)
        self._execute("DELETE FROM apps WHERE owner = ? AND name = ?", (owner, name))
        for table in ("revisions", "errors", "history", "starts", "callers"):
            self._execute(f"DELETE FROM {table} WHERE owner = ? AND app = ?", (owner, name))
        return sorted(used - self.blobs())

    def blobs(self, where: str = "1", *arguments: Any) -> set[str]:
        """Return the SHA-256 of the files of all revisions, or of those that `where` chooses.

        These are their payloads, and what their images take or their `app_files`.
        """
        query = f"SELECT payload, json_extract(manifest, '$.context') FROM revisions WHERE {where}"
        return {digest for row in self._execute(query, arguments) for digest in row if digest}

    def ended_runners(self) -> list[tuple[str, bool]]:
        """Return the ids of runners that have ended, oldest first, and whether their app is there.

        Only these are read: there may be many runners, and revisions are large.
        """
        known = "revision IN (SELECT id FROM revisions)"
        where = "ended_at IS NOT NULL ORDER BY ended_at"
        found = self._execute(f"SELECT id, {known} FROM runners WHERE {where}")
        return [(name, bool(shown)) for name, shown in found]

    def secret(self, env: str, name: str) -> Secret:
        """Return a secret of an environment by name.

        Raises
        ------
        NotFoundError
            When there is none.
        """
        for secret in self.select(Secret, "env = ? AND name = ?", env, name):
            return secret
        where, flag = ("", "") if env == MAIN else (f" in {env}", f" --env {env}")
        raise NotFoundError(
            f"there is no secret {name}{where}; store it with '%fal secrets set {name}{flag}' "
            f"(in a shell: fal-notebook secrets set {name}{flag}) and deploy again"
        )

    def delete_secret(self, env: str, name: str) -> None:
        """Remove a secret, whose value is kept for as long as logs may hold it."""
        self.retire_secret(env, name)
        self._execute("DELETE FROM secrets WHERE env = ? AND name = ?", (env, name))

    def retire_secret(self, env: str, name: str) -> None:
        """Keep the present value of a secret, if there is one, for as long as logs may hold it."""
        for secret in self.select(Secret, "env = ? AND name = ?", env, name):
            self.put(RetiredSecret(secret.name, secret.value))

    def delete_env(self, name: str) -> None:
        """Remove an environment with its secrets."""
        for secret in self.select(Secret, "env = ?", name):
            self.delete_secret(name, secret.name)
        self._execute("DELETE FROM envs WHERE name = ?", (name,))

    def forget_retired(self, logs: Collection[str]) -> None:
        """Remove values that none of the runners can have written whose logs are there."""
        found = self._execute("SELECT id, created_at FROM runners")
        oldest = min((at for runner, at in found if runner in logs), default=time.time())
        self._execute("DELETE FROM retired_secrets WHERE retired_at < ?", (oldest,))

    def forget_runners(self, before: float) -> list[str]:
        """Remove runners that ended before `before` (unix seconds); return their ids."""
        rows = self.select(RunnerRow, "ended_at < ?", before)
        self._execute("DELETE FROM runners WHERE ended_at < ?", (before,))
        return [row.id for row in rows]

    def add_errors(self, group: ErrorGroup) -> None:
        """Add newer failures to their group."""
        names = [f.name for f in fields(ErrorGroup)]
        kept = ("owner", "app", "type", "place", "count", "first_seen")
        newest = "".join(f", {name} = excluded.{name}" for name in names if name not in kept)
        self._execute(
            f"INSERT INTO errors VALUES ({', '.join(f':{name}' for name in names)}) "
            "ON CONFLICT (owner, app, type, place) "
            f"DO UPDATE SET count = count + excluded.count{newest}",
            asdict(group),
        )

    def limit_errors(self, owner: str, app: str, limit: int) -> None:
        """Remove the oldest of an app's groups above `limit`."""
        self._execute(
            "DELETE FROM errors WHERE rowid IN (SELECT rowid FROM errors "
            "WHERE owner = ? AND app = ? ORDER BY last_seen DESC LIMIT -1 OFFSET ?)",
            (owner, app, limit),
        )

    def forget_errors(self, before: float) -> None:
        """Remove groups that have not grown since `before` (unix seconds)."""
        self._execute("DELETE FROM errors WHERE last_seen < ?", (before,))

    def add_history(self, rows: Iterable[HistoryRow]) -> None:
        """Add counts to those of the same step, time and endpoint."""
        marks = ", ".join("?" * (len(_HISTORY_KEY) + len(_COUNTS)))
        added = ", ".join(f"{name} = {name} + excluded.{name}" for name in _COUNTS)
        statement = (
            f"INSERT INTO history ({', '.join((*_HISTORY_KEY, *_COUNTS))}) VALUES ({marks}) "
            f"ON CONFLICT ({', '.join(_HISTORY_KEY)}) DO UPDATE SET {added}"
        )
        with io_errors(self._folder):
            self._db.executemany(statement, ((*row[:-1], *row[-1]) for row in rows))

    def history(self, group: str, where: str, *arguments: Any) -> list[tuple[Any, list[int]]]:
        """Return the sums of counts for each value of `group`; both texts are SQL of ours."""
        sums = ", ".join(f"SUM({name})" for name in _COUNTS)
        found = self._execute(
            f"SELECT {group} AS value, {sums} FROM history WHERE {where} "
            "GROUP BY value ORDER BY value",
            arguments,
        )
        return [(row[0], list(row)[1:]) for row in found]

    def counted_endpoints(self, owner: str, app: str, step: int) -> list[str]:
        """Return the endpoints that an app has counts of at this step."""
        query = "SELECT DISTINCT endpoint FROM history WHERE owner = ? AND app = ? AND step = ?"
        return [row[0] for row in self._execute(query, (owner, app, step))]

    def forget_history(self, step: int, before: float, after: float) -> None:
        """Remove counts of a step from before and after these times (unix seconds)."""
        for outside, limit in (("<", before), (">", after)):  # each a range of the primary key
            self._execute(
                "DELETE FROM history WHERE (owner, app) IN (SELECT owner, name FROM apps) "
                f"AND step = ? AND at {outside} ?",
                (step, limit),
            )

    def add_caller(self, caller: Caller) -> None:
        """Add answers to those that the caller has had before.

        Its last one is the last to be written: a clock that was ahead for a while is forgotten.
        """
        names = [f.name for f in fields(Caller)]
        self._execute(
            f"INSERT INTO callers VALUES ({', '.join(f':{name}' for name in names)}) "
            "ON CONFLICT DO UPDATE SET requests = requests + excluded.requests, "
            "first_at = MIN(first_at, excluded.first_at), last_at = excluded.last_at",
            asdict(caller),
        )

    def add_billed(self, billed: Billed) -> None:
        """Add seconds to those of the same day and state."""
        names = [f.name for f in fields(Billed)]
        self._execute(
            f"INSERT INTO billed VALUES ({', '.join(f':{name}' for name in names)}) "
            "ON CONFLICT DO UPDATE SET seconds = seconds + excluded.seconds",
            asdict(billed),
        )

    def forget_billed(self, before: str) -> None:
        """Remove billed seconds of days before that day."""
        self._execute("DELETE FROM billed WHERE day < ?", (before,))

    def limit_starts(self, owner: str, app: str, limit: int) -> None:
        """Remove the oldest of an app's starts above `limit`."""
        self._execute(
            "DELETE FROM starts WHERE rowid IN (SELECT rowid FROM starts "
            "WHERE owner = ? AND app = ? ORDER BY at DESC LIMIT -1 OFFSET ?)",
            (owner, app, limit),
        )

    def events(self, since: int, owner: str = "", app: str = "") -> list[Event]:
        """Return events after `since`, of one owner or app if named."""
        found = self._execute(
            "SELECT * FROM events WHERE seq > ? "
            "AND ? IN ('', owner) AND ? IN ('', app) ORDER BY seq",
            (since, owner, app),
        )
        return [Event(**{k: _decode(k, row[k]) for k in row.keys()}) for row in found]  # noqa: SIM118

    def last_seq(self) -> int:
        """Return the number of the newest event, 0 when there is none."""
        return int(self._execute("SELECT COALESCE(MAX(seq), 0) FROM events").fetchone()[0])

    def note(self, name: str, make: Callable[[], str]) -> str:
        """Return a value that belongs to this state folder, made and recorded at first use."""
        row = self._execute("SELECT value FROM notes WHERE name = ?", (name,)).fetchone()
        return str(row[0]) if row is not None else self.set_note(name, make())

    def set_note(self, name: str, value: str) -> str:
        """Record a value and return it."""
        self._execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", (name, value))
        return value


def _decode(name: str, value: Any) -> Any:
    return json.loads(value) if name in _JSON else value
