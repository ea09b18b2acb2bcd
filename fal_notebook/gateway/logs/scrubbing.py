"""Masks values of secrets in log files where they stand; readers and offsets notice nothing.

The runner's own Python writes none. This is for what comes past it: C code, child processes, and
servers of the user's own.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from fal_notebook.gateway import paths
from fal_notebook.gateway.logs.redaction import Redaction
from fal_notebook.gateway.store import RunnerRow, Store
from fal_notebook.runner.log_file import kept_from

# So much is looked through at a time.
SIZE = 1024 * 1024


class Scrubber:
    """Looks through what the logs of runners that were given secrets have become."""

    def __init__(self, state: Path, store: Store, redaction: Redaction) -> None:
        self._state = state
        self._store = store
        self._redaction = redaction
        self._given: dict[str, bool] = {}
        self._done: dict[str, int] = {}

    async def look(self, runner: str) -> None:
        """Mask what is new in a runner's log; it costs a stat when there is nothing."""
        if not self._was_given_secrets(runner):
            return
        path, done = paths.runner_log(self._state, runner), self._done.get(runner, 0)
        if path.exists() and path.stat().st_size != done:
            names = self._redaction.stored_forms()
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
    """Mask values, the keys of `names`, in a file from `done` on; return how far it is done.

    A value may have begun shortly before `done`.
    """
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return 0
    try:
        size = os.fstat(descriptor).st_size
        longest = max(map(len, names), default=1)
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
    for value in sorted(names, key=len, reverse=True):
        at = data.find(value)
        while at >= 0:
            masked = mask(value, names[value])
            yield at, masked
            data[at : at + len(masked)] = masked
            at = data.find(value, at + len(masked))


def mask(value: bytes, name: str) -> bytes:
    """Return bytes as long as a value, with its lines, that name the secret where there is room."""
    label = f"[secret {name}]".encode()
    lines = [b"*" * len(line) for line in value.split(b"\n")]
    if len(lines[0]) >= len(label):
        lines[0] = label.ljust(len(lines[0]), b"*")
    return b"\n".join(lines)
