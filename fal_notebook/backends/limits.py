"""What a container may take and do, and how one ended that took too much; others ask the engine."""

from __future__ import annotations

import contextlib
import signal
from typing import Any

from fal_notebook.backends.base import Placement

# In a container the owner's shared storage is here.
DATA = "/data"
# Processes and threads that a container may have.
PIDS = 2048


def limits(placement: Placement, data: str) -> dict[str, Any]:
    """Return what a container may take and do, as docker-py's host configuration.

    Parameters
    ----------
    placement : Placement
        Its machine is what the container gets, its GPUs are the container's only ones.
    data : str
        The folder of this machine that it sees as `DATA`.
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
        "binds": {data: {"bind": DATA, "mode": "rw"}},
        "log_config": {"Type": "json-file", "Config": {"max-size": "16m", "max-file": "2"}},
        **({"device_requests": gpus} if placement.gpus else {}),
    }


def ending(status: int, out_of_memory: bool, memory_mb: int) -> str:
    """Return how a container ended, in words; its init turns signals into numbers above 128."""
    if out_of_memory and status:
        return f"out of memory: it may have {memory_mb} MB, a larger machine_type has more"
    if status > 128:
        with contextlib.suppress(ValueError):
            return signal.Signals(status - 128).name
    return f"exit status {status}"
