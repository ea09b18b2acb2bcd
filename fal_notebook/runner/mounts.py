"""The shared storage as real folders such as ``/data``, for code that has these written into it."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence

# From <sched.h> and <sys/mount.h>.
_CLONE_NEWNS = 0x20000
_MS_BIND, _MS_REC, _MS_SLAVE = 4096, 16384, 1 << 19


def show(folder: str, places: Sequence[str]) -> list[str]:
    """Show a folder at other places to this process and its children alone, where that may be.

    It takes the right to mount (CAP_SYS_ADMIN) on Linux. A place that holds something is the
    user's own and stays; a missing one is made, as an empty folder.

    Returns
    -------
    list of str
        The places where it could not be shown.
    """
    if not os.path.isdir(folder):
        return list(places)
    missing = [place for place in places if place != folder]
    if not missing or sys.platform != "linux":
        return missing
    libc = ctypes.CDLL(None, use_errno=True)
    # What is mounted on the machine later is seen here too, but nothing of here is seen there.
    if libc.unshare(_CLONE_NEWNS) != 0 or not _mount(libc, None, "/", _MS_REC | _MS_SLAVE):
        return missing
    return [p for p in missing if not (_is_free(p) and _mount(libc, folder, p, _MS_BIND))]


def _mount(libc: ctypes.CDLL, source: str | None, target: str, flags: int) -> bool:
    what = os.fsencode(source) if source is not None else None
    return bool(libc.mount(what, os.fsencode(target), None, ctypes.c_ulong(flags), None) == 0)


def _is_free(folder: str) -> bool:
    try:
        os.makedirs(folder, exist_ok=True)
        return not os.listdir(folder)
    except OSError:
        return False
