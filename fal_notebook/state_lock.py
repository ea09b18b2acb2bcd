"""The lock of a state folder: the one gateway that holds it does so until its process ends.

The folder itself is locked: a file in it could be removed, and a second gateway lock its successor.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time
from pathlib import Path

_PERIOD = 0.02
_FILE = "gateway.lock"


def take(state: Path, timeout: float = 0.0) -> int | None:
    """Return a descriptor that holds the folder until it is closed; None when another one does."""
    deadline = time.monotonic() + timeout
    while (descriptor := _try(state)) is None and time.monotonic() < deadline:
        time.sleep(_PERIOD)
    return descriptor


def wait_until_free(state: Path, timeout: float = 0.0) -> bool:
    """Say whether no gateway holds the folder, now or within `timeout` seconds."""
    descriptor = take(state, timeout)
    if descriptor is not None:
        os.close(descriptor)
    return descriptor is not None


def is_on(descriptor: int, state: Path) -> bool:
    """Say whether what is locked is still the folder of this name (or its file), and no other."""
    held = os.fstat(descriptor)
    locked = state if stat.S_ISDIR(held.st_mode) else state / _FILE
    try:
        return os.path.samestat(held, os.stat(locked))
    except FileNotFoundError:
        return False


def _try(state: Path) -> int | None:
    descriptor = os.open(state, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        os.close(descriptor)
        return _try_file(state / _FILE)
    return descriptor


def _try_file(path: Path) -> int | None:
    """Lock a file, where folders cannot be locked (NFS)."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
