"""The gateway's child processes: those that it started, and those that came to it (Linux).

The event loop waits for the former by their ids; the latter are ended and reaped here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Collection
from typing import Any

from fal_notebook.runner import keeper

# Of this process, as its children are.
_ours: list[asyncio.subprocess.Process] = []
_starting: list[object] = []


async def start(*command: str, **how: Any) -> asyncio.subprocess.Process:
    """Start a program as `asyncio.create_subprocess_exec` does; it is no stray."""
    _starting.append(command)
    try:
        process = await asyncio.create_subprocess_exec(*command, **how)
    finally:
        _starting.remove(command)
    _ours[:] = [other for other in _ours if other.returncode is None]
    _ours.append(process)
    return process


def end_strays(spared: Collection[int]) -> bool:
    """Kill what was not started here and is not spared; say whether there is none any more.

    The children of what is killed come here, so it is to be called until there is none.
    """
    if _starting:  # not known yet: it would look like a stray
        return False
    own = {process.pid for process in _ours if process.returncode is None}
    strays = keeper.kill_children(own | set(spared))
    for pid in strays:
        reap(pid)
    return not strays


def reap(pid: int) -> None:
    """Bury a process that came here, if it has ended."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
