"""What a gateway takes at a moment: memory, descriptors, threads, processes, files."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
import time
from pathlib import Path

import psutil
from session import Session

MB = 1e6
# Each revision keeps its payload and each runner its log, for a week: these are meant to grow.
KEPT = ("blobs", "logs")

Sample = dict[str, float]


class Gauge:
    """Takes a sample every second while its body runs."""

    def __init__(self, session: Session) -> None:
        self.samples: list[Sample] = []
        self._session = session
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Gauge:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _work(self) -> None:
        began = time.monotonic()
        while not self._stop.wait(1):
            self.samples.append({"at": time.monotonic() - began, **sample(self._session)})


def sample(session: Session) -> Sample:
    """Return what the gateway, its processes and its folders take now."""
    state, gateway = Path(session.state), session.gateway
    below = gateway.children(recursive=True)
    found = {
        "gateway, memory": gateway.memory_info().rss / MB,
        "gateway, descriptors": gateway.num_fds(),
        "gateway, threads": gateway.num_threads(),
        "processes": len(below),
        **_files(state),
        "sockets": len(os.listdir(_noted(state, "sockets"))),
    }
    kinds = _kinds(state)
    for process in below:
        kind = f"{kinds.get(process.pid, 'zygote or server')} {process.pid}"
        with contextlib.suppress(psutil.Error):  # it has ended
            found[f"{kind}, memory"] = process.memory_info().rss / MB
            found[f"{kind}, descriptors"] = process.num_fds()
    return found


def _files(state: Path) -> Sample:
    """Return how many files there are but those that are kept, and how large they all are (MB)."""
    number, size = 0, 0
    for folder, _, names in os.walk(state):
        kept = os.path.relpath(folder, state) in KEPT
        for name in names:
            with contextlib.suppress(OSError):  # removed meanwhile
                found = os.lstat(os.path.join(folder, name))
                number += not kept
                size += 0 if kept else found.st_blocks * 512
    return {"files": number, "state": size / MB}


def _kinds(state: Path) -> dict[int, str]:
    """Return which processes are runners, of which app, and their keepers."""
    query = "SELECT app, process FROM runners WHERE state != 'TERMINATED'"
    with contextlib.closing(sqlite3.connect(state / "store.db")) as store:
        rows = [(app, json.loads(process or "{}")) for app, process in store.execute(query)]
    runners = {process["pid"]: f"runner of {app}" for app, process in rows if "pid" in process}
    keepers = {p["keeper"]: f"keeper of {app}" for app, p in rows if "keeper" in p}
    return runners | keepers


def _noted(state: Path, name: str) -> str:
    with contextlib.closing(sqlite3.connect(state / "store.db")) as store:
        return str(store.execute("SELECT value FROM notes WHERE name = ?", (name,)).fetchone()[0])
