"""What a container may take and do, and how one ended that took too much; others ask the engine."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Sequence
from typing import Any

from fal_notebook.backends.base import Placement

# User and group of containers whose gateway is root.
CONTAINED = 1000
# Which rights new files lack in containers: the group of the shared storage may write them.
UMASK = 0o007
# Processes and threads that a container may have.
PIDS = 2048


def own_user(uid: int, gid: int, rootless: bool) -> str:
    """Return who runs in an image that brings no user: the gateway's own, but never root.

    In a rootless engine the root of a container is the engine's user outside.
    """
    if rootless:
        return "0:0"
    return f"{uid}:{gid}" if uid else f"{CONTAINED}:{CONTAINED}"


def limits(
    placement: Placement,
    data: str,
    group: int,
    places: Sequence[str],
    writable: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Return what a container may take and do, as docker-py's host configuration.

    Parameters
    ----------
    placement : Placement
        Its machine is what the container gets, its GPUs are the container's only ones.
    data : str
        The folder of this machine that is the owner's shared storage.
    group : int
        The group of that folder: whoever runs in the container belongs to it.
    places : sequence of str
        Where the container sees that folder.
    writable : sequence of str, optional
        The only folders that it may write to, besides those; they are empty and in memory.
    """
    machine = placement.machine
    gpus = [{"DeviceIDs": list(placement.gpus), "Capabilities": [["gpu"]]}]
    return {
        "mem_limit": f"{machine.memory_mb}m",
        "memswap_limit": f"{machine.memory_mb}m",
        "cpu_period": 100_000,
        "cpu_quota": int(machine.cores * 100_000),
        "shm_size": f"{machine.memory_mb}m",  # PyTorch's loaders want more than the usual 64 MB
        "pids_limit": PIDS,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "init": True,
        "group_add": [str(group)],
        "binds": [f"{data}:{place}:rw" for place in places],
        "log_config": {"Type": "json-file", "Config": {"max-size": "16m", "max-file": "2"}},
        **({"device_requests": gpus} if placement.gpus else {}),
        **(_read_only(writable) if writable is not None else {}),
    }


def _read_only(writable: Sequence[str]) -> dict[str, Any]:
    return {"read_only": True, "tmpfs": dict.fromkeys(writable, "mode=1777,exec")}


def killed_for_memory(memory_mb: int) -> str:
    """Return what the log says when a process of a container took too much memory."""
    return (
        f"out of memory: a process of this runner was killed, which may have {memory_mb} MB; a "
        "larger machine_type has more"
    )


def ending(status: int, out_of_memory: bool, memory_mb: int) -> str:
    """Return how a container ended, in words; its init turns signals into numbers above 128."""
    if out_of_memory:
        return f"out of memory: it may have {memory_mb} MB, a larger machine_type has more"
    if status > 128:
        with contextlib.suppress(ValueError):
            return signal.Signals(status - 128).name
    return f"exit status {status}"
