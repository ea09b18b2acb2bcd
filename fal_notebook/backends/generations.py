"""Folders that are built once, under a lock, and shared: environments, libraries of the runner.

On disk, below the state folder (``root``)::

    envs/<key>/.lock          held by the one process that builds
    envs/<key>/1/             a generation: the environment itself
    envs/<key>/1/.complete    written last; without it the generation is rubbish
    libraries/<minor>-<hash>/ the same, for what the runner itself imports

The newest complete generation counts. A forced build makes the next one, so runners that use the
old one are not disturbed; it stays until its folder is removed. A number is not used again for a
build after one that broke off, since without a keeper (macOS) a uv
may outlive a killed gateway and still write there.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

from filelock import FileLock, Timeout

from fal_notebook.backends.uv_process import Progress, os_errors_translated

MARKER = ".complete"
LOCK = ".lock"


@dataclass(frozen=True)
class Place:
    """Where the generations of one environment lie, and how to tell a usable one.

    Attributes
    ----------
    folder : Path
    needs : str
        A file that vanishes with the interpreter or an over-eager cleaner.
    record : mapping
        What is written down of a generation.
    """

    folder: Path
    needs: str
    record: Mapping[str, object]

    def generations(self) -> list[int]:
        """Return the numbers of all there are, complete or not."""
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdecimal())

    def complete(self, number: int) -> bool:
        """Say whether a generation was built to its end."""
        return (self.folder / str(number) / MARKER).exists()

    def remove_if_empty(self) -> None:
        """Remove the folder and the lock in it, to be called by who holds that.

        Who waits for the lock opens it anew each time, and no other process builds here.
        """
        if not self.generations():
            with suppress(OSError):
                (self.folder / LOCK).unlink()
                self.folder.rmdir()

    def latest(self) -> Path | None:
        """Return the newest usable one."""
        for number in reversed(self.generations()):
            path = self.folder / str(number)
            if self.complete(number) and (path / self.needs).exists():
                return path
        return None


async def ensure_built(
    place: Place, build: Callable[[Path], Awaitable[None]], progress: Progress, force: bool
) -> Path:
    """Return the newest usable generation; build one if there is none, or anew by `force`.

    Raises
    ------
    BuildError
        Nothing is left behind then, nor after a cancellation.
    """
    with os_errors_translated(place.folder):
        if not force and (found := place.latest()):
            return found
        for folder in (place.folder.parent, place.folder):
            folder.mkdir(exist_ok=True)  # not the state folder: when it was removed it stays so
        async with _locked(place.folder / LOCK, progress):
            if not force and (found := place.latest()):
                return found
            try:
                return await _build(place, build, progress)
            finally:
                place.remove_if_empty()


async def _build(
    place: Place, build: Callable[[Path], Awaitable[None]], progress: Progress
) -> Path:
    started = time.monotonic()
    numbers = place.generations()
    for number in numbers:
        if not place.complete(number):
            await _remove(place.folder / str(number))
    folder = place.folder / str(max(numbers, default=0) + 1)
    try:
        await build(folder)
        _mark(folder, place.record, seconds=time.monotonic() - started)
    except BaseException:
        await _remove(folder)
        raise
    progress(f"environment ready after {time.monotonic() - started:.1f} s")
    return folder


async def _remove(folder: Path) -> None:
    """Delete a folder of perhaps tens of thousands of files without holding up the event loop."""
    await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def _mark(folder: Path, record: Mapping[str, object], seconds: float) -> None:
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    content = {
        **record,
        "uv": metadata.version("uv"),
        "time": now,
        "seconds": round(seconds, 2),
    }
    draft = folder / f"{MARKER}.draft"
    draft.write_text(json.dumps(content, indent=1), encoding="utf-8")
    draft.replace(folder / MARKER)


@asynccontextmanager
async def _locked(path: Path, progress: Progress) -> AsyncIterator[None]:
    lock, told = FileLock(path), False
    while True:
        try:
            lock.acquire(blocking=False)
            break
        except Timeout:
            if not told:
                progress("waiting for another build of the same environment")
            told = True
            await asyncio.sleep(0.05)
    try:
        yield
    finally:
        lock.release()
