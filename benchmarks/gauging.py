"""What a gateway takes at a moment: memory, descriptors, threads, processes, files."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
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
    """Return what the gateway, its processes and its folders take now.

    Of processes of one kind it is the most that one takes, so that those count as well that come
    in place of others.
    """
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
    for process, kind in _by_kind(below, gateway.pid, _kinds(state)):
        with contextlib.suppress(psutil.Error):  # it has ended
            took = process.memory_info().rss / MB, process.num_fds()
            for what, value in zip(("memory", "descriptors"), took, strict=True):
                name = f"{kind}, {what}"
                found[name] = max(found.get(name, 0.0), value)
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


def _by_kind(
    below: list[psutil.Process], gateway: int, kinds: dict[int, str]
) -> Iterator[tuple[psutil.Process, str]]:
    """Yield processes with what they are; who begins or ends just now is left out."""
    for process in below:
        with contextlib.suppress(psutil.Error):  # it has ended
            parent = process.ppid()
            if process.pid not in kinds and parent in kinds:  # parents come first
                kinds[process.pid] = f"below {kinds[parent].removeprefix('below ')}"
            if kind := "zygote" if parent == gateway else kinds.get(process.pid):
                yield process, kind


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
