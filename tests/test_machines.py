"""Machine types: which one a host gives, and how many runners fit."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from fal_notebook.machines import (
    MACHINE_TYPES,
    Host,
    choose,
    default_max_concurrency,
    lookup,
    this_host,
)

LAPTOP = Host(memory_mb=16 * 1024, cores=8)
SERVER = Host(memory_mb=512 * 1024, cores=64, gpus=4)


def test_the_table_holds_the_documented_types() -> None:
    a100 = lookup("GPU-A100")
    assert (a100.gpu_memory_gb, a100.memory_mb, a100.cores, a100.gpus) == (40, 60 * 1024, 12, 1)
    assert (lookup("XS").memory_mb, lookup("XS").cores) == (512, 0.5)
    assert all(name == machine.name for name, machine in MACHINE_TYPES.items())


def test_an_unknown_type_is_accepted_with_a_notice() -> None:
    choice = choose("GPU-B300", None, SERVER)
    assert not choice.machine.known
    assert choice.machine.gpus == 1
    assert choice.notice is not None
    assert "'GPU-B300' is not known" in choice.notice


def test_a_type_that_the_host_has_comes_without_a_notice() -> None:
    assert choose("S", None, LAPTOP).notice is None
    assert choose(["GPU-A100", "L"], None, SERVER).machine == lookup("GPU-A100")


def test_the_first_type_that_the_host_has_is_chosen() -> None:
    choice = choose(["GPU-H100", "XL", "L", "S"], None, LAPTOP)
    assert (choice.machine, choice.notice) == (lookup("L"), None)


def test_without_a_fitting_type_the_first_is_clamped_to_the_host() -> None:
    choice = choose(["GPU-A100", "XL"], None, LAPTOP)
    machine = choice.machine
    assert (machine.name, machine.memory_mb, machine.cores) == ("GPU-A100", 16 * 1024, 8)
    assert machine.gpus == 0
    assert choice.notice == (
        "this host has no machine of type GPU-A100 (61440 MB, 12 cores, 1 GPU), "
        "so a runner gets 16384 MB, 8 cores, 0 GPUs"
    )


def test_num_gpus_replaces_the_number_of_the_type() -> None:
    assert choose("GPU-A100", 4, SERVER).machine.gpus == 4
    too_many = choose("GPU-A100", 8, SERVER)
    assert too_many.machine.gpus == 4
    assert too_many.notice is not None


@pytest.mark.parametrize(("name", "runners"), [("XS", 32), ("S", 16), ("L", 1), ("XL", 1)])
def test_max_concurrency_is_what_the_memory_holds(name: str, runners: int) -> None:
    assert default_max_concurrency(lookup(name), LAPTOP) == runners


def test_this_host_has_memory_and_cores() -> None:
    host = this_host()
    assert host.memory_mb > 0
    assert host.cores >= 1


class _NVMLError(Exception):
    pass


def test_gpus_are_counted_by_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    nvml = SimpleNamespace(
        NVMLError=_NVMLError,
        nvmlInit=lambda: calls.append("init"),
        nvmlDeviceGetCount=lambda: 2,
        nvmlShutdown=lambda: calls.append("shutdown"),
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert this_host().gpus == 2
    assert calls == ["init", "shutdown"]


def test_a_host_without_a_driver_has_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver() -> None:
        raise _NVMLError

    nvml = SimpleNamespace(NVMLError=_NVMLError, nvmlInit=no_driver)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert this_host().gpus == 0
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert this_host().gpus == 0
