"""The rows of the queue: one per request, its body and its answer beside it.

The functions that take a connection are changes for `Journal.write`.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from fal_notebook.gateway.headers import Header

# Bodies stand in tables of their own, because a row that changes is written as a whole. A body
# that is NULL is a file (see `content`).
SCHEMA = """
CREATE TABLE requests (
  number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, app TEXT NOT NULL,
  state TEXT NOT NULL, method TEXT NOT NULL, target BLOB NOT NULL, headers TEXT NOT NULL,
  user TEXT, low INTEGER NOT NULL, no_retry INTEGER NOT NULL, deadline REAL,
  webhook TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, runner TEXT NOT NULL DEFAULT '',
  started_at REAL, completed_at REAL, cancelled INTEGER NOT NULL DEFAULT 0,
  error TEXT NOT NULL DEFAULT '', error_type TEXT NOT NULL DEFAULT '');
CREATE INDEX unfinished ON requests (number) WHERE state != 'COMPLETED';
CREATE INDEX finished ON requests (completed_at) WHERE state = 'COMPLETED';
CREATE TABLE bodies (number INTEGER PRIMARY KEY, content BLOB);
CREATE TABLE answers (
  number INTEGER PRIMARY KEY, status INTEGER NOT NULL, headers TEXT NOT NULL, content BLOB);
"""

IN_QUEUE, IN_PROGRESS, COMPLETED = "IN_QUEUE", "IN_PROGRESS", "COMPLETED"


@dataclass
class QueuedRequest:
    """A request as it was accepted, and how far it is.

    `number` is its time of arrival in unix microseconds, unique; `target` path and query as the
    caller sent them; `user` None for a caller without a key; `deadline` the unix time until which
    it must have begun.
    """

    number: int
    id: str
    owner: str
    app: str
    method: str
    target: bytes
    headers: list[Header]
    user: str | None
    low: bool = False
    no_retry: bool = False
    deadline: float | None = None
    webhook: str = ""
    state: str = IN_QUEUE
    attempts: int = 0
    runner: str = ""
    started_at: float | None = None
    completed_at: float | None = None
    cancelled: bool = False
    error: str = ""
    error_type: str = ""


@dataclass(frozen=True)
class Answer:
    """What a request was answered: by the app, or by us with an error and its type.

    `content` is None when it is in a file.
    """

    status: int
    headers: list[Header]
    content: bytes | None
    error: str = ""
    error_type: str = ""


_COLUMNS = (
    "number, id, owner, app, method, target, headers, user, low, no_retry, deadline, webhook, "
    "state, attempts, runner, started_at, completed_at, cancelled, error, error_type"
)
SELECT = f"SELECT {_COLUMNS} FROM requests WHERE "
# The state stands in the text, for a partial index serves no parameter in every SQLite.
UNFINISHED = f"{SELECT}state != 'COMPLETED' ORDER BY number"


def insert(database: sqlite3.Connection, request: QueuedRequest, body: bytes | None) -> None:
    """Record a request that is accepted with this."""
    marks = ", ".join("?" * (_COLUMNS.count(",") + 1))
    values = {**vars(request), "headers": _dump(request.headers)}
    database.execute(
        f"INSERT INTO requests ({_COLUMNS}) VALUES ({marks})",
        [values[name] for name in _COLUMNS.split(", ")],
    )
    database.execute("INSERT INTO bodies VALUES (?, ?)", (request.number, body))


def begin(database: sqlite3.Connection, number: int, runner: str, attempt: int, now: float) -> None:
    """Record that a runner gets the request now."""
    database.execute(
        "UPDATE requests SET state = ?, runner = ?, attempts = ?, started_at = ? WHERE number = ?",
        (IN_PROGRESS, runner, attempt, now, number),
    )


def put_back(database: sqlite3.Connection, number: int, attempts: int) -> None:
    """Record that the request waits again."""
    database.execute(
        "UPDATE requests SET state = ?, attempts = ? WHERE number = ?",
        (IN_QUEUE, attempts, number),
    )


def cancel(database: sqlite3.Connection, number: int) -> None:
    """Record that nobody wants the answer any more: it is not tried again."""
    database.execute("UPDATE requests SET cancelled = 1 WHERE number = ?", (number,))


def complete(database: sqlite3.Connection, number: int, answer: Answer, now: float) -> None:
    """Record the answer; nothing changes it any more."""
    database.execute(
        "UPDATE requests SET state = ?, completed_at = ?, error = ?, error_type = ? "
        "WHERE number = ?",
        (COMPLETED, now, answer.error, answer.error_type, number),
    )
    database.execute(
        "INSERT INTO answers VALUES (?, ?, ?, ?)",
        (number, answer.status, _dump(answer.headers), answer.content),
    )


def forget(database: sqlite3.Connection, before: float, limit: int) -> list[str]:
    """Remove requests that were completed before `before`, at most `limit`; return their ids.

    One whose webhook is still to be delivered stays, for the webhook tells the answer.
    """
    found = database.execute(
        "SELECT number, id FROM requests WHERE state = 'COMPLETED' AND completed_at < ? "
        "AND id NOT IN (SELECT request_id FROM webhooks) LIMIT ?",
        (before, limit),
    ).fetchall()
    numbers = [(row["number"],) for row in found]
    for table in ("requests", "bodies", "answers"):
        database.executemany(f"DELETE FROM {table} WHERE number = ?", numbers)
    return [row["id"] for row in found]


def ids(path: Path, owner: str, app: str, part: str) -> set[str]:
    """Return ids of an app's requests that begin or end with `part`, of very many some."""
    size = len(part)
    with contextlib.closing(sqlite3.connect(path)) as database:
        # The inner query reads the index of ids only, which is a tenth of the table.
        rows = database.execute(
            "SELECT id FROM requests WHERE owner = ? AND app = ? AND id IN (SELECT id FROM requests"
            " WHERE substr(id, 1, ?) = ? OR substr(id, ?) = ?) LIMIT 1000",
            (owner, app, size, part, -size, part),
        )
        return {str(row[0]) for row in rows}


def load(row: sqlite3.Row) -> QueuedRequest:
    """Return a row of `SELECT` as a request."""
    values = dict(row)
    values["headers"] = _load(values["headers"])
    for name in ("low", "no_retry", "cancelled"):
        values[name] = bool(values[name])
    return QueuedRequest(**values)


def load_answer(row: sqlite3.Row) -> Answer:
    """Return a row of ``answers``."""
    return Answer(row["status"], _load(row["headers"]), row["content"])


def _dump(headers: list[Header]) -> str:
    return json.dumps([[n.decode("latin-1"), v.decode("latin-1")] for n, v in headers])


def _load(text: str) -> list[Header]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in json.loads(text)]
