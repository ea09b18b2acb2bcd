"""A log file of bounded disk space: its oldest part becomes a hole, offsets stay as they are.

Everybody who writes it appends: Python, C code, child processes. So no line is lost while space is
given back, and an offset names the same line for ever. The hole always begins at 0.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
import struct
import sys
from pathlib import Path
from typing import NamedTuple

# A log that takes more than this much of the disk loses its oldest part; so much of it stays.
MOST = 16 * 1024 * 1024
KEPT = 8 * 1024 * 1024
# A hole ends at a multiple of every block size that file systems have.
_BLOCK = 1024 * 1024

# From <linux/falloc.h> and from macOS' <sys/fcntl.h>.
_PUNCH_HOLE, _KEEP_SIZE = 2, 1
_F_PUNCHHOLE = 99


def record_mark(secret: str) -> bytes:
    """Return what begins each record of the runner with this secret; other lines are raw output.

    Who makes a server print what it was sent cannot know it, and so cannot write records: those
    name requests of others.
    """
    return b"\x1e" + hashlib.sha256(f"records {secret}".encode()).hexdigest()[:16].encode()


class LogFile(NamedTuple):
    """The file of one runner, and what begins the records in it."""

    path: Path
    mark: bytes

    @classmethod
    def of(cls, path: str | Path, secret: str) -> LogFile:
        """Return the log of the runner with this secret."""
        return cls(Path(path), record_mark(secret))


def disk_space(found: os.stat_result) -> int:
    """Return the bytes that a file takes on the disk; its holes take none."""
    return found.st_blocks * 512


def bound(descriptor: int) -> None:
    """Give back the oldest part of a log that has become too big; it costs one fstat if not.

    Where the file system makes no holes all of it goes, and offsets begin at 0 again.
    """
    found = os.fstat(descriptor)
    if disk_space(found) <= MOST:
        return
    try:
        _punch(descriptor, (found.st_size - KEPT) // _BLOCK * _BLOCK)
    except OSError:
        os.ftruncate(descriptor, 0)


def bound_path(path: str | os.PathLike[str]) -> None:
    """Do the same for a file that others write; a stat if it is small, nothing if it is gone."""
    try:
        if disk_space(os.stat(path)) <= MOST:
            return
        descriptor = os.open(path, os.O_WRONLY)
    except FileNotFoundError:
        return
    try:
        bound(descriptor)
    finally:
        os.close(descriptor)


def kept_from(descriptor: int, offset: int) -> int:
    """Return where the first byte at or after `offset` is that was not given back.

    At the end that is the end; beyond it, because the file was emptied, the beginning.
    """
    size = os.fstat(descriptor).st_size
    if offset > size:
        offset = 0
    try:
        return os.lseek(descriptor, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            return offset  # this file system has no holes
        return size


def _punch(descriptor: int, length: int) -> None:
    if sys.platform == "darwin":
        fcntl.fcntl(descriptor, _F_PUNCHHOLE, struct.pack("IIqq", 0, 0, 0, length))
        return
    libc = ctypes.CDLL(None, use_errno=True)
    mode = _PUNCH_HOLE | _KEEP_SIZE
    if libc.fallocate(descriptor, mode, ctypes.c_int64(0), ctypes.c_int64(length)) != 0:
        raise OSError(ctypes.get_errno(), "no hole was made")
