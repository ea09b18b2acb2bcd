"""The rows of the queue: accepting durably, doing, and both with very much in it."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median

from loads import Address, Client, Target, first_200, load, response_size
from peers import BODY
from report import Result
from rows import CONNECTIONS, Effort
from session import Session, until

# What stands in the queue, and what is finished, when all is measured (not with --quick).
MANY_QUEUED = 100_000
MANY_FINISHED = 1_000_000


def submit(session: Session, effort: Effort) -> list[Result]:
    """Accept requests that nobody works on; against one INSERT after another, each with fsync."""
    with _blocked(session) as target:
        client = Client(target)
        client.latencies(effort.requests // 2)
        alone, peer, rate, peer_rate = [], [], [], []
        for _ in range(effort.rounds):
            alone.append(median(client.latencies(effort.requests)) * 1e3)
            times = _inserts(effort.requests)
            peer.append(median(times) * 1e3)
            rate.append(load(target, CONNECTIONS, effort.seconds, wrk=False).rate)
            peer_rate.append(len(times) / sum(times))
        client.close()
    sqlite = "SQLite INSERT, fsync"
    return [
        Result("durable submit, alone", "ms", alone, sqlite, peer, budget=3),
        Result(
            f"durable submit, {CONNECTIONS} connections",
            *("req/s", rate, sqlite, peer_rate),
            budget=1500,
            more_is_better=True,
        ),
    ]


def result(session: Session, effort: Effort) -> list[Result]:
    """From the submit to the result of a request, on a warm runner; against a direct call."""
    name = session.new_name()
    session.deploy(name, "min_concurrency=1")
    direct = session.target(name)
    first_200(direct)
    asker, caller = Asker(_queue(direct)), Client(direct)
    times = [asker.submit_to_result() for _ in range(effort.requests // 4)]
    ours, peer = [], []
    for _ in range(effort.rounds):
        times = [asker.submit_to_result() for _ in range(effort.requests // 4)]
        ours.append(median(times) * 1e3)
        peer.append(median(caller.latencies(effort.requests // 4)) * 1e3)
    asker.close()
    caller.close()
    session[name].delete()
    return [Result("submit to result", "ms", ours, "direct call", peer, budget=15)]


def long_queue(session: Session, effort: Effort) -> list[Result]:
    """Status and position of the last of very many; against one alone in the queue."""
    count = MANY_QUEUED if effort.rounds > 1 else effort.requests
    with _blocked(session) as target:
        asker = Asker(target)
        asker.submit()
        few = [median(asker.statuses(effort.requests)) * 1e3 for _ in range(effort.rounds)]
        while (position := asker.submit()) < count:
            load(target, CONNECTIONS, min(effort.seconds, 1 + (count - position) / 5000), wrk=False)
        many = [median(asker.statuses(effort.requests)) * 1e3 for _ in range(effort.rounds)]
        asker.close()
    return [Result(f"status, {count:,} queued", "ms", many, "1 queued", few, budget=5)]


def much_finished(session: Session, effort: Effort) -> list[Result]:
    """Submit with very many finished requests in the file; against none of them there."""
    count = MANY_FINISHED if effort.rounds > 1 else effort.requests
    with _blocked(session) as target:
        client = Client(target)
        client.latencies(effort.requests // 2)
        few = [median(client.latencies(effort.requests)) * 1e3 for _ in range(effort.rounds)]
        _finish_many(Path(session.state, "queue.db"), count)
        client.latencies(effort.requests // 2)
        many = [median(client.latencies(effort.requests)) * 1e3 for _ in range(effort.rounds)]
        client.close()
    return [Result(f"submit, {count:,} finished", "ms", many, "none finished", few)]


ROWS: dict[str, Callable[[Session, Effort], list[Result]]] = {
    "submit": submit,
    "result": result,
    "long_queue": long_queue,
    "much_finished": much_finished,
}


# --- parts of rows ---------------------------------------------------------------------------
class Asker:
    """One blocking connection that submits, asks for the status and fetches results."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._socket = _connected(target.address)
        self._status = b""

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def submit(self) -> int:
        """Submit; return the position."""
        told = json.loads(self._ask(self._target.request())[1])
        self._paths(str(told["request_id"]))
        return int(told["queue_position"])

    def statuses(self, count: int) -> list[float]:
        """Return the seconds that each of so many looks at the last request took."""
        return [_seconds(lambda: self._ask(self._status)) for _ in range(count)]

    def submit_to_result(self) -> float:
        """Return the seconds from a submit to its result."""
        return _seconds(self._to_result)

    def _to_result(self) -> None:
        self.submit()
        while self._ask(self._status)[0] != 200:
            time.sleep(0.0005)  # a caller that asks without a pause takes the CPU from the answer
        if self._ask(self._result)[0] != 200:
            raise RuntimeError("the request failed")

    def _paths(self, request: str) -> None:
        base = f"{self._target.path}/requests/{request}"
        self._status, self._result = (
            replace(self._target, path=path, method="GET", body=b"").request()
            for path in (f"{base}/status", base)
        )

    def _ask(self, request: bytes) -> tuple[int, bytes]:
        self._socket.sendall(request)
        data = b""
        while (size := response_size(data)) is None or len(data) < size:
            data += self._socket.recv(65536)
        return int(data[9:12]), data.partition(b"\r\n\r\n")[2]


@contextlib.contextmanager
def _blocked(session: Session) -> Iterator[Target]:
    """Give the queue of an app whose one runner is busy for ever."""
    name = session.new_name()
    session.run(
        f"%%fal_function {name} serve=true auth=public wait=true max_concurrency=1 "
        "termination_grace_period_seconds=1\n"
        f"def {name}(text: str, times: int = 1) -> str:\n"
        "    import time\n    time.sleep(3600)\n    return ''\n"
    )
    target = _queue(session.target(name))
    Client(target).latencies(1)
    until(lambda: session[name].status()["in_flight"] == 1)
    try:
        yield target
    finally:
        session[name].delete()


def _queue(direct: Target) -> Target:
    return replace(direct, path=direct.path.replace("/run/", "/queue/", 1))


def _connected(address: Address) -> socket.socket:
    assert not isinstance(address, str)
    connection = socket.create_connection(address, timeout=30)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _seconds(act: Callable[[], object]) -> float:
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def _inserts(count: int) -> list[float]:
    """Return the seconds that each of so many single durable inserts of a body took."""
    with tempfile.TemporaryDirectory(prefix="fal-bench-sqlite-") as folder:
        database = sqlite3.connect(f"{folder}/peer.db", isolation_level=None)
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.execute("CREATE TABLE bodies (number INTEGER PRIMARY KEY, content BLOB)")
        insert = "INSERT INTO bodies (content) VALUES (?)"
        times = [_seconds(lambda: database.execute(insert, (BODY,))) for _ in range(count)]
        database.close()
    return times


def _finish_many(path: Path, count: int) -> None:
    """Put finished requests into the queue's file, as if they had been done before."""
    step, now = 10_000, time.time()
    yesterday = int((now - 24 * 3600) * 1e6)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=30)) as database:
        for start in range(0, count, step):
            numbers = range(yesterday + start, yesterday + min(start + step, count))
            database.execute("BEGIN IMMEDIATE")
            database.executemany(
                "INSERT INTO requests (number, id, owner, app, state, method, target, headers, "
                "low, no_retry, webhook, completed_at) "
                "VALUES (?, ?, 'bench', 'past', 'COMPLETED', 'POST', '/', '[]', 0, 0, '', ?)",
                zip(numbers, (f"{n:016x}" for n in numbers), itertools.repeat(now)),
            )
            rows = [(number, BODY) for number in numbers]
            database.executemany("INSERT INTO bodies VALUES (?, ?)", rows)
            database.executemany("INSERT INTO answers VALUES (?, 200, '[]', ?)", rows)
            database.execute("COMMIT")
