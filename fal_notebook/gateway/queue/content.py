"""Bodies of requests and answers: small ones stand in the journal, big ones in files beside it."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import threading
from collections.abc import AsyncGenerator
from pathlib import Path

from fal_notebook.gateway.database import io_errors

# A larger body goes to a file.
INLINE = 64 * 1024
# Written to the file, and read from it, in pieces of this size.
PIECE = 1024 * 1024


class Spool:
    """Takes in a body piece by piece; above `INLINE` bytes it goes to a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pending: list[bytes] = []
        self._size = 0
        self._file: io.FileIO | None = None
        self._lock = threading.Lock()  # a thread may still write what is discarded
        self._discarded = False

    async def write(self, piece: bytes) -> None:
        """Take a piece.

        Raises
        ------
        DiskFullError
        """
        self._pending.append(piece)
        self._size += len(piece)
        if self._size > (INLINE if self._file is None else PIECE):
            await self._flush()

    async def finish(self) -> bytes | None:
        """Return the whole body, None when it lies in the file, which is on disk then."""
        if self._file is None:
            return b"".join(self._pending)
        await self._flush()
        with io_errors(self._path.parent):
            await asyncio.to_thread(self._sync, self._file)
        return None

    def discard(self) -> None:
        """Remove what was written, and write no more."""
        with self._lock, contextlib.suppress(OSError):
            self._discarded = True
            if self._file is not None:
                self._file.close()
            self._path.unlink()

    async def _flush(self) -> None:
        data, self._pending, self._size = b"".join(self._pending), [], 0
        with io_errors(self._path.parent):
            await asyncio.to_thread(self._append, memoryview(data))

    def _append(self, data: memoryview) -> None:
        with self._lock:
            if self._discarded:
                return
            if self._file is None:
                self._path.parent.mkdir(exist_ok=True, mode=0o700)
                self._file = io.FileIO(self._path, "w")
            while data:
                data = data[self._file.write(data) :]

    def _sync(self, file: io.FileIO) -> None:
        """Put the file on disk, and its name, which stands in the folder."""
        with file:
            os.fsync(file.fileno())
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


async def pieces(content: bytes | None, path: Path) -> AsyncGenerator[bytes, None]:
    """Yield a body: `content`, or when that is None the file."""
    if content is not None:
        yield content
        return
    with io_errors(path.parent):
        file = path.open("rb")
    with file:
        while data := await asyncio.to_thread(file.read, PIECE):
            yield data


def size(content: bytes | None, path: Path) -> int:
    """Return the length of a body in bytes."""
    if content is not None:
        return len(content)
    with io_errors(path.parent):
        return path.stat().st_size
