"""The parts of uploads that come in several: each a file until they are joined to one."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fal_notebook.gateway.database import io_errors
from fal_notebook.gateway.exchange import RefusedRequestError
from fal_notebook.gateway.storage.room import Room

_TAG_LENGTH = 16


class Parts:
    """A folder for each upload; a part that is sent twice has two files, told apart by its tag."""

    def __init__(self, folder: Path, room: Room) -> None:
        self._folder = folder
        self._room = room
        self._joining: set[str] = set()

    def add(self, upload: str, number: int, content: Path) -> str:
        """Take a part over and return its tag."""
        tag = secrets.token_hex(_TAG_LENGTH)
        with io_errors(self._folder):
            (self._folder / upload).mkdir(parents=True, exist_ok=True, mode=0o700)
            content.replace(self._folder / upload / f"{number}-{tag}")
        return tag

    async def join(self, upload: str, told: Any, target: Path, limit: int) -> int:
        """Make one file of the parts that the caller lists, and return its size.

        The first becomes the file and each other one is removed as it is appended, so that the
        disk need not hold all twice; if that fails the upload has to begin anew.

        Raises
        ------
        RefusedRequestError
            400 when a part is missing, 413 when they are too large together; the parts stay.
        DiskFullError
        """
        files = [self._folder / upload / name for name in _names(told)]
        size = sum(_size_of(path, number) for number, path in enumerate(files, 1))
        if size > limit:
            raise RefusedRequestError(413, f"the upload is above max_upload={limit} bytes")
        self._joining.add(upload)
        try:
            with io_errors(self._folder):
                await asyncio.to_thread(_join, files, target)
        except BaseException:
            self._room.give_back(_remove(target))
            raise
        finally:
            self._joining.remove(upload)
            self.discard(upload)
        return size

    def discard(self, upload: str) -> None:
        """Remove what there is of an upload."""
        folder = self._folder / upload
        if folder.exists():
            self._room.give_back(sum(path.lstat().st_size for path in folder.iterdir()))
            shutil.rmtree(folder, ignore_errors=True)

    def uploads(self) -> dict[str, int]:
        """Return the bytes of each upload that has parts and is not being joined."""
        return {
            folder.name: sum(path.lstat().st_size for path in folder.iterdir())
            for folder in self._folder.iterdir()
            if folder.is_dir() and folder.name not in self._joining
        }


def _names(told: Any) -> list[str]:
    """Return the file names of the parts that a caller lists, in order and without a gap."""
    try:
        tags = {int(part["partNumber"]): str(part["etag"]).strip('"') for part in told}
    except (TypeError, KeyError, ValueError, OverflowError):
        raise RefusedRequestError(400, "parts is a list of {partNumber, etag}") from None
    for expected, number in enumerate(sorted(tags), 1):
        if number != expected:
            raise RefusedRequestError(400, f"part {expected} is missing")
    if not tags or any(not _is_tag(tag) for tag in tags.values()):
        raise RefusedRequestError(400, "parts is empty, or an etag in it is not ours")
    return [f"{number}-{tags[number]}" for number in sorted(tags)]


def _is_tag(text: str) -> bool:
    return len(text) == 2 * _TAG_LENGTH and all(letter in "0123456789abcdef" for letter in text)


def _size_of(path: Path, number: int) -> int:
    try:
        found = path.lstat()
    except FileNotFoundError:
        raise RefusedRequestError(400, f"part {number} is missing: send it again") from None
    if not stat.S_ISREG(found.st_mode):
        raise RefusedRequestError(400, f"part {number} is not a file")
    return found.st_size


def _join(files: Sequence[Path], target: Path) -> None:
    files[0].replace(target)
    with target.open("ab") as whole:
        for path in files[1:]:
            with path.open("rb") as part:
                shutil.copyfileobj(part, whole, 1024 * 1024)
            path.unlink()
        whole.flush()
        os.fsync(whole.fileno())


def _remove(path: Path) -> int:
    """Remove a file and return its size."""
    try:
        size = path.lstat().st_size
        path.unlink()
    except FileNotFoundError:
        return 0
    return size
