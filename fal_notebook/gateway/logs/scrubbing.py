"""Masks secrets and runners' keys in log files where they stand; readers notice nothing.

The runner's own Python writes none. This is for what comes past it: C code, child processes, and
servers of the user's own.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from fal_notebook.gateway import paths
from fal_notebook.gateway.logs.redaction import Redaction
from fal_notebook.gateway.store import RunnerRow, Store
from fal_notebook.runner.log_file import kept_from
from fal_notebook.runner.secret_forms import RUNNER_KEY, RUNNER_KEY_NAME, RUNNER_KEY_PREFIX

_KEY = re.compile(RUNNER_KEY.encode())
_KEY_LENGTH = len(RUNNER_KEY_PREFIX) + 64
# So much is looked through at a time.
SIZE = 1024 * 1024


class Scrubber:
    """Looks through what the logs of runners have become."""

    def __init__(self, state: Path, store: Store, redaction: Redaction) -> None:
        self._state = state
        self._store = store
        self._redaction = redaction
        self._given: dict[str, bool] = {}
        self._done: dict[str, int] = {}

    async def look(self, runner: str) -> None:
        """Mask what is new in a runner's log; it costs a stat when there is nothing."""
        path, done = paths.runner_log(self._state, runner), self._done.get(runner, 0)
        if path.exists() and path.stat().st_size != done:
            names = self._redaction.stored_forms() if self._was_given_secrets(runner) else {}
            self._done[runner] = await asyncio.to_thread(scrub, path, done, names)

    async def finish(self, runner: str) -> None:
        """Mask the last of a log: its runner has ended."""
        await self.look(runner)
        self._given.pop(runner, None)
        self._done.pop(runner, None)

    def _was_given_secrets(self, runner: str) -> bool:
        if runner not in self._given:
            for row in self._store.select(RunnerRow, "id = ?", runner):
                revision = self._store.revision(row.revision)
                self._given[runner] = revision is None or bool(revision.options["secrets"])
        return self._given.get(runner, False)


def scrub(path: Path, done: int, names: Mapping[bytes, str]) -> int:
    """Mask values, the keys of `names`, and runners' keys, from `done` on; return how far it is.

    A value may have begun shortly before `done`.
    """
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return 0
    try:
        size = os.fstat(descriptor).st_size
        longest = max(_KEY_LENGTH, *map(len, names), 0)
        start = max(0, done - longest) if done <= size else 0
        while start < size:
            start = kept_from(descriptor, start)
            data = bytearray(os.pread(descriptor, min(SIZE, size - start), start))
            for at, masked in _masks(data, names):
                _overwrite(descriptor, masked, start + at)
            start += len(data) if start + len(data) >= size else max(1, len(data) - longest)
        return size
    finally:
        os.close(descriptor)


def _overwrite(descriptor: int, masked: bytes, at: int) -> None:
    """Write without a trace: a container's log is followed again from its time of change."""
    found = os.fstat(descriptor)
    os.pwrite(descriptor, masked, at)
    os.utime(descriptor, ns=(found.st_atime_ns, found.st_mtime_ns))


def _masks(data: bytearray, names: Mapping[bytes, str]) -> Iterator[tuple[int, bytes]]:
    """Yield where something is to be masked, and by what; of two at one place the longer."""
    keys = dict.fromkeys(_KEY.findall(data), RUNNER_KEY_NAME)
    for value, name in sorted({**names, **keys}.items(), key=_length, reverse=True):
        at = data.find(value)
        while at >= 0:
            masked = mask(value, name)
            yield at, masked
            data[at : at + len(masked)] = masked
            at = data.find(value, at + len(masked))


def _length(named: tuple[bytes, str]) -> int:
    return len(named[0])


def mask(value: bytes, name: str) -> bytes:
    """Return bytes as long as a value, with its lines, that name the secret where there is room."""
    label = f"[secret {name}]".encode()
    lines = [b"*" * len(line) for line in value.split(b"\n")]
    if len(lines[0]) >= len(label):
        lines[0] = label.ljust(len(lines[0]), b"*")
    return b"\n".join(lines)
