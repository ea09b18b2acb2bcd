"""The containers of one gateway, followed in threads: which live, how they end, what they print."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from docker.errors import DockerException
from requests.exceptions import RequestException

from fal_notebook.backends.engine import Engine, Streams
from fal_notebook.backends.limits import killed_for_memory
from fal_notebook.exceptions import BuildError
from fal_notebook.runner.log_file import LogFile

# Labels of every container: which gateway's it is, and which runner's.
STATE, RUNNER = "fal-notebook.state", "fal-notebook.runner"
# How often an engine that was lost is looked for (seconds).
RETRY = 1.0
# So long what a container printed last may take to be read.
LAST_WORDS = 5.0
# A container that ends so soon after one of its processes was killed has ended for that (seconds).
CONSEQUENCE = 2.0

_STREAM_ERRORS = (BuildError, DockerException, RequestException, OSError, ValueError)
_LOG = logging.getLogger(__name__)


@dataclass
class Seen:
    """What is known of a container."""

    runner: str
    log: LogFile
    running: bool = True
    memory_mb: int = 0
    killed_for_memory: float = 0.0  # when the kernel last ended a process of it for that
    died: float = 0.0
    writer: _Log | None = None

    @property
    def out_of_memory(self) -> bool:
        """Whether it has ended, or is about to, for want of memory."""
        return self.died - self.killed_for_memory < CONSEQUENCE if self.killed_for_memory else False


class Containers:
    """Follows the engine's events; removes containers of this gateway that nobody knows.

    Parameters
    ----------
    state : str
        What stands in the label `STATE` of every container of this gateway.
    on_return : callable
        Called, from a thread, when an engine that was lost answers again.
    """

    def __init__(self, engine: Engine, state: str, on_return: Callable[[], None]) -> None:
        self._on_return = on_return
        self._engine = engine
        self._labels = {STATE: state}
        self._seen: dict[str, Seen] = {}
        self._expected: set[str] = set()
        self._readers: dict[str, threading.Thread] = {}
        self._streams = Streams()
        self._ending = threading.Event()
        self._watching: threading.Thread | None = None
        self._lock = threading.Lock()

    # --- what the backend tells ---------------------------------------------------------------
    def expect(self, runner: str) -> None:
        """Leave the containers of this runner alone."""
        self._expected.add(runner)

    def forget(self, runner: str) -> None:
        """Take what is left of this runner for rubbish."""
        self._expected.discard(runner)
        for name in [name for name, seen in list(self._seen.items()) if seen.runner == runner]:
            self._seen.pop(name, None)

    def add(self, container: str, runner: str, log: LogFile, memory_mb: int = 0) -> None:
        """Know a container that is about to start."""
        self._seen[container] = Seen(runner, log, memory_mb=memory_mb)

    def get(self, container: str) -> Seen | None:
        """Return what is known of a container."""
        return self._seen.get(container)

    # --- output -------------------------------------------------------------------------------
    def read(self, container: str) -> None:
        """Copy what a container prints into its log, from where that ended."""
        with self._lock:
            seen = self._seen.get(container)
            reader = self._readers.get(container)
            if seen is None or (reader is not None and reader.is_alive()):
                return
            reader = threading.Thread(target=self._copy, args=(container, seen), daemon=True)
            self._readers[container] = reader
            reader.start()

    def read_to_end(self, container: str) -> None:
        """Wait until all that an ended container has printed is in its log."""
        reader = self._readers.pop(container, None)
        if reader is not None:
            reader.join(LAST_WORDS)

    def _copy(self, container: str, seen: Seen) -> None:
        try:
            with _Log(seen.log) as log, contextlib.suppress(*_STREAM_ERRORS):
                seen.writer = log
                output = self._engine.output(container, log.at // 10**9)
                with self._streams.entered(output) as pieces:
                    for piece in pieces:
                        log.write(piece)
        except OSError as error:  # a full disk
            _LOG.warning("the output of container %s is lost: %s", container, error)

    # --- events -------------------------------------------------------------------------------
    def watch(self) -> None:
        """Have the engine's events followed from now on."""
        with self._lock:
            if self._watching is None:
                self._watching = threading.Thread(target=self._watch, daemon=True)
                self._watching.start()

    def _watch(self) -> None:
        lost = False
        while not self._ending.is_set():
            try:
                with self._streams.entered(self._engine.events(self._labels)) as events:
                    self.look()
                    if lost:
                        self._on_return()
                    for event in events:
                        self._happened(event)
            except _STREAM_ERRORS as error:
                _LOG.debug("the engine's events are not followed: %s", error)
                self._engine.close()
            lost = True
            self._ending.wait(RETRY)

    def _happened(self, event: Mapping[str, Any]) -> None:
        seen = self._seen.get(event["id"])
        if seen is not None and event["Action"] == "oom":
            seen.killed_for_memory = event["timeNano"] / 1e9
            if seen.writer is not None:
                seen.writer.note(killed_for_memory(seen.memory_mb))
        elif seen is not None and event["Action"] in ("die", "destroy"):
            seen.died = seen.died or event["timeNano"] / 1e9
            seen.running = False

    def look(self) -> None:
        """Compare with what the engine has: learn what ended, remove what nobody knows."""
        known = set(self._seen)
        found = {item["Id"]: item for item in self._engine.containers(self._labels)}
        for name, item in found.items():
            if self._is_stray(item):
                self._remove(name)
            elif name in self._seen and item["State"] == "running":
                self._seen[name].running = True
                self.read(name)
        for name in known:
            gone = name not in found or found[name]["State"] in ("exited", "dead")
            if gone and name in self._seen:
                self._seen[name].running = False

    def _remove(self, name: str) -> None:
        """Remove what was left over; one that cannot be removed now does not stop the rest."""
        _LOG.info("container %s was left over and is removed", name[:12])
        try:
            self._engine.remove(name)
        except BuildError as error:
            _LOG.warning("container %s is left for later: %s", name[:12], error)

    def _is_stray(self, item: Mapping[str, Any]) -> bool:
        return item["Labels"].get(RUNNER) not in self._expected

    def remove_strays(self, dry: bool) -> list[dict[str, Any]]:
        """Remove what nobody knows, or only return it, as the engine lists it."""
        found = [i for i in self._engine.containers(self._labels, True) if self._is_stray(i)]
        for item in found if not dry else ():
            self._engine.remove(item["Id"])
        return found

    def close(self) -> None:
        """Stop following; containers live on."""
        self._ending.set()
        self._streams.close()
        for thread in (self._watching, *self._readers.values()):
            if thread is not None:
                thread.join(1.0)


class _Log:
    """A log file whose time of change is that of its last line, to go on from after a restart."""

    def __init__(self, log: LogFile) -> None:
        self._mark = log.mark
        self._descriptor = os.open(log.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        found = os.fstat(self._descriptor)
        self.at = found.st_mtime_ns if found.st_size else 0
        self._before = self.at
        self._lock = threading.Lock()
        self._within_line = False

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            os.close(self._descriptor)
            self._descriptor = -1

    def write(self, piece: bytes) -> None:
        """Append what was printed, without the time in front of it; nothing twice."""
        time_of, _, text = piece.partition(b" ")
        self.at = nanoseconds(time_of)
        if self.at > self._before:
            with self._lock:
                self._append(text)
            self._within_line = not text.endswith(b"\n")

    def note(self, message: str) -> None:
        """Append a line of our own, without a change of what was copied last."""
        record = {"at": time.time(), "level": "ERROR", "request": None, "message": message}
        line = self._mark + json.dumps(record).encode() + b"\n"
        with self._lock, contextlib.suppress(OSError):  # a full disk, or the container has ended
            self._append(b"\n" * self._within_line + line)

    def _append(self, text: bytes) -> None:
        os.write(self._descriptor, text)
        os.utime(self._descriptor, ns=(self.at, self.at))


def nanoseconds(time_of: bytes) -> int:
    """Return the time of a piece of output, such as ``2026-01-02T03:04:05.000000006Z``."""
    second, _, fraction = time_of.rstrip(b"Z").partition(b".")
    at = datetime.fromisoformat(second.decode() + "+00:00").timestamp()
    return int(at) * 10**9 + int(fraction.ljust(9, b"0")[:9] or 0)
