"""The stored files: content in a folder, under names of our own, what is known in a table."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
from dataclasses import replace
from pathlib import Path

from fal_notebook.gateway import clock
from fal_notebook.gateway.database import io_errors
from fal_notebook.gateway.exchange import RefusedRequestError
from fal_notebook.gateway.storage.parts import Parts
from fal_notebook.gateway.storage.room import Room
from fal_notebook.gateway.storage.table import FileTable, StoredFile
from fal_notebook.gateway.storage.tickets import URL_VALID

# A file that no row knows is this old before it goes: its row may be on its way.
_STRAY_KEPT = 3600.0


class Files:
    """Content comes to `incoming` first and is moved when it is whole; all files are 0600.

    Parameters
    ----------
    quota : int
        Most bytes that all of it may take.
    """

    def __init__(self, state: Path, quota: int) -> None:
        self._folder = state / "storage"
        # What is on its way there is of a gateway that was killed.
        shutil.rmtree(self._folder / "incoming", ignore_errors=True)
        for name in ("files", "parts", "incoming"):
            with io_errors(self._folder):
                (self._folder / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        self.table = FileTable(state / "storage.db")
        self.room = Room(quota, self._remove_expired)
        self.parts = Parts(self._folder / "parts", self.room)
        self.room.used = self.table.total() + sum(self.parts.uploads().values())

    def close(self) -> None:
        """Close the table."""
        self.table.close()

    def incoming(self) -> Path:
        """Return a new name for content on its way."""
        return self._folder / "incoming" / secrets.token_hex(16)

    def keep(self, file: StoredFile, content: Path, size: int) -> StoredFile:
        """Take content over as that of a file.

        Raises
        ------
        DiskFullError
            Nothing of it stays then.
        """
        before = self.table.find(file.id)
        kept = replace(file, size=size)
        try:
            with io_errors(self._folder):
                content.replace(self._path(file.id))
            self.table.put(kept)
        except BaseException:
            for path in (content, self._path(file.id)):
                path.unlink(missing_ok=True)
            self.room.give_back(size)
            raise
        if before is not None:  # an answer was lost, and the content sent again
            self.room.give_back(before.size or 0)
        return kept

    def find(self, identity: str) -> StoredFile | None:
        """Return a file that has not expired, or None."""
        file = self.table.find(identity)
        return None if file is None or file.is_over(clock.ago(0)) else file

    def open(self, file: StoredFile) -> int:
        """Return a descriptor of a file's content, never of what was put in its place.

        Raises
        ------
        RefusedRequestError
            Such as a link, or a pipe: to open one would wait until somebody writes to it.
        """
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            descriptor = os.open(self._path(file.id), flags)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise RefusedRequestError(400, "the stored file is a link") from None
            raise RefusedRequestError(404, "no such file") from None
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise RefusedRequestError(400, "the stored file is no file any more")
        return descriptor

    def remove(self, file: StoredFile) -> None:
        """Remove a file, or an upload that has not ended.

        Its content goes first: on a full disk that makes the room for the change of the table.
        """
        self.parts.discard(file.id)
        with contextlib.suppress(FileNotFoundError):
            self._path(file.id).unlink()
        self.table.delete(file.id)
        self.room.give_back(file.size or 0)

    def remove_older(self, seconds: float) -> tuple[int, int]:
        """Remove files that are older than this; return how many, and their bytes.

        Parts of an upload that was begun before and never ended are one file.
        """
        unfinished = self.parts.uploads()
        older = self.table.older(clock.ago(seconds))
        found = [f for f in older if f.size is not None or f.id in unfinished]
        for file in found:
            self.remove(file)
        return len(found), sum(unfinished.get(f.id, f.size or 0) for f in found)

    def prune(self) -> None:
        """Remove what has expired, was never finished, or is in the folder without a row."""
        self._remove_expired()
        known, now = self.table.ids(), clock.ago(0)
        for path in (self._folder / "files").iterdir():
            with contextlib.suppress(OSError):
                if path.name not in known and path.lstat().st_mtime < now - _STRAY_KEPT:
                    path.unlink()
        for upload in self.parts.uploads().keys() - known:
            self.parts.discard(upload)

    def _remove_expired(self) -> None:
        now = clock.ago(0)
        for file in self.table.over(now, now - URL_VALID):
            self.remove(file)

    def _path(self, identity: str) -> Path:
        return self._folder / "files" / identity
