"""Machine types, what this host has, and which type of a list it gives; others set the limits."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module

GB = 1024


@dataclass(frozen=True)
class MachineType:
    """What one runner of a machine type gets.

    Attributes
    ----------
    name : str
        Name as written in ``machine_type``.
    memory_mb : int
        Memory in MiB.
    cores : float
        CPU cores.
    gpus : int
        Number of GPUs.
    gpu_memory_gb : int
        Memory of one GPU in GB, 0 without GPUs.
    known : bool
        False for a name that is not in the table; its figures are then a guess.
    """

    name: str
    memory_mb: int
    cores: float
    gpus: int = 0
    gpu_memory_gb: int = 0
    known: bool = True


# Source: fal.ai/docs/documentation/deployment/machine-types; GPU and GPU-A6000 from older pages.
MACHINE_TYPES: dict[str, MachineType] = {
    machine.name: machine
    for machine in (
        MachineType("XS", 512, 0.5),
        MachineType("S", 1 * GB, 1),
        MachineType("M", 2 * GB, 2),
        MachineType("L", 15 * GB, 4),
        MachineType("XL", 30 * GB, 8),
        MachineType("GPU", 64 * GB, 8, 1, 40),
        MachineType("GPU-RTX4090", 48 * GB, 12, 1, 24),
        MachineType("GPU-RTX5090", 60 * GB, 14, 1, 32),
        MachineType("GPU-A6000", 18 * GB, 10, 1, 48),
        MachineType("GPU-A100", 60 * GB, 12, 1, 40),
        MachineType("GPU-L40", 100 * GB, 6, 1, 48),
        MachineType("GPU-H100", 112 * GB, 12, 1, 80),
        MachineType("GPU-RTXPRO6000", 100 * GB, 6, 1, 96),
        MachineType("GPU-H200", 112 * GB, 12, 1, 141),
        MachineType("GPU-B200", 210 * GB, 19, 1, 192),
    )
}


@dataclass(frozen=True)
class Host:
    """What a host has: memory in MiB, logical CPU cores and GPUs that may be used."""

    memory_mb: int
    cores: int
    gpus: int = 0


@dataclass(frozen=True)
class Choice:
    """The machine a runner gets, and a sentence to keep visible when it is not what was asked."""

    machine: MachineType
    notice: str | None = None


def lookup(name: str) -> MachineType:
    """Return the machine type of that name; an unknown one has guessed figures and known=False."""
    if name in MACHINE_TYPES:
        return MACHINE_TYPES[name]
    like = MACHINE_TYPES["GPU" if name.upper().startswith("GPU") else "XS"]
    return replace(like, name=name, known=False)


def this_host() -> Host:
    """Measure this host: psutil for memory and cores, NVML for GPUs where ``pynvml`` is there."""
    # Not at module level: this module ships to runners, which have no psutil.
    import psutil

    memory_mb = psutil.virtual_memory().total // (1024 * 1024)
    return Host(memory_mb, psutil.cpu_count() or 1, len(gpus_here()))


def gpus_here() -> tuple[str, ...]:
    """Return the GPUs of this host that its programs may use, as ``CUDA_VISIBLE_DEVICES`` does."""
    return visible_gpus(_count_gpus(), os.environ.get("CUDA_VISIBLE_DEVICES"))


def visible_gpus(count: int, visible: str | None) -> tuple[str, ...]:
    """Return those of `count` GPUs that ``CUDA_VISIBLE_DEVICES`` lets through; all if it is unset.

    As CUDA does it: the list ends at its first number that there is not.
    """
    if visible is None or count == 0:
        return tuple(map(str, range(count)))
    names = [name.strip() for name in visible.split(",")]
    return tuple(itertools.takewhile(lambda name: _may_be(name, count), names))


def _may_be(name: str, count: int) -> bool:
    return int(name) < count if name.isdecimal() else name.startswith(("GPU-", "MIG-"))


def gpus_text(count: int) -> str:
    """Return a number of GPUs in words."""
    return f"{count} GPU{'s' * (count != 1)}"


def choose(types: str | Sequence[str], num_gpus: int | None, host: Host) -> Choice:
    """Choose the first type that the host has, or else the first of all, clamped to the host.

    Parameters
    ----------
    types : str or sequence of str
        Value of ``machine_type``, at least one name.
    num_gpus : int or None
        GPUs per runner, in place of the number of the type.
    host : Host
        What there is.
    """
    names = [types] if isinstance(types, str) else types
    machines = [_with_gpus(lookup(name), num_gpus) for name in names]
    fitting = next((machine for machine in machines if _fits(machine, host)), None)
    machine = fitting or _clamp(machines[0], host)
    notices = [] if machine.known else [_unknown(machine)]
    if fitting is None:
        notices.append(_clamped(machines[0], machine))
    return Choice(machine, "; ".join(notices) or None)


def default_max_concurrency(machine: MachineType, host: Host) -> int:
    """Return how many runners of this machine the host's memory and GPUs hold, at least 1."""
    held = [host.memory_mb // machine.memory_mb]
    held += [host.gpus // machine.gpus] if machine.gpus else []
    return max(1, min(held))


def _count_gpus() -> int:
    try:
        nvml = import_module("pynvml")
    except ImportError:
        return 0
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:  # the library is there, a driver is not
        return 0
    try:
        return int(nvml.nvmlDeviceGetCount())
    finally:
        nvml.nvmlShutdown()


def _with_gpus(machine: MachineType, num_gpus: int | None) -> MachineType:
    return machine if num_gpus is None else replace(machine, gpus=num_gpus)


def _fits(machine: MachineType, host: Host) -> bool:
    return (
        machine.memory_mb <= host.memory_mb
        and machine.cores <= host.cores
        and machine.gpus <= host.gpus
    )


def _clamp(machine: MachineType, host: Host) -> MachineType:
    return replace(
        machine,
        memory_mb=min(machine.memory_mb, host.memory_mb),
        cores=min(machine.cores, host.cores),
        gpus=min(machine.gpus, host.gpus),
    )


def _clamped(asked: MachineType, given: MachineType) -> str:
    return (
        f"this host has no machine of type {asked.name} ({figures(asked)}), "
        f"so a runner gets {figures(given)}"
    )


def _unknown(machine: MachineType) -> str:
    return f"machine type '{machine.name}' is not known here and its size is a guess"


def figures(machine: MachineType) -> str:
    """Return in words what a runner of a machine type gets."""
    return f"{machine.memory_mb} MB, {machine.cores:g} cores, {gpus_text(machine.gpus)}"
