"""What containers may take and do, as data; that the engine obeys is in test_contained."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fal_notebook.backends.base import Placement
from fal_notebook.backends.containers import Seen
from fal_notebook.backends.engine_words import meaning
from fal_notebook.backends.limits import ending, limits, own_user
from fal_notebook.machines import Host, choose, lookup

SMALL = Placement("tester", "app", "r", lookup("S"))


def of(placement: Placement = SMALL, **more: Any) -> dict[str, Any]:
    return limits(placement, "/state/data/tester", 1000, ["/data", "/models"], **more)


def test_a_container_sees_the_shared_storage_at_every_place() -> None:
    assert of()["binds"] == ["/state/data/tester:/data:rw", "/state/data/tester:/models:rw"]


def test_a_machine_type_is_what_a_container_may_take() -> None:
    found = of(replace(SMALL, machine=lookup("XS")))
    assert found["mem_limit"] == found["memswap_limit"] == "512m"
    assert found["cpu_quota"] == found["cpu_period"] / 2
    assert found["pids_limit"] > 0


def test_a_machine_that_the_host_has_not_is_clamped_to_what_it_has() -> None:
    choice = choose("GPU-H100", None, Host(memory_mb=8192, cores=2))
    found = of(replace(SMALL, machine=choice.machine))
    assert choice.notice is not None
    assert (found["mem_limit"], found["cpu_quota"]) == ("8192m", 2 * found["cpu_period"])
    assert "device_requests" not in found


def test_a_container_has_the_gpus_of_its_runner_and_no_others() -> None:
    assert "device_requests" not in of()
    (asked,) = of(replace(SMALL, gpus=("1", "GPU-8932f937")))["device_requests"]
    assert asked == {"DeviceIDs": ["1", "GPU-8932f937"], "Capabilities": [["gpu"]]}


def test_a_container_gets_no_privileges() -> None:
    found = of()
    assert found["cap_drop"] == ["ALL"]
    assert found["security_opt"] == ["no-new-privileges"]
    assert found["group_add"] == ["1000"]
    assert "read_only" not in found


def test_a_read_only_container_writes_to_the_folders_that_are_named() -> None:
    found = of(writable=("/tmp", "/app"))
    assert found["read_only"] is True
    assert set(found["tmpfs"]) == {"/tmp", "/app"}


@pytest.mark.parametrize(
    ("uid", "gid", "rootless", "user"),
    [
        (1001, 100, False, "1001:100"),
        (0, 0, False, "1000:1000"),
        (1001, 100, True, "0:0"),
    ],
)
def test_who_runs_in_an_image_without_a_user_is_nobody_mighty(
    uid: int, gid: int, rootless: bool, user: str
) -> None:
    assert own_user(uid, gid, rootless) == user


@pytest.mark.parametrize(
    ("status", "out_of_memory", "words"),
    [(0, False, "exit status 0"), (3, False, "exit status 3"), (139, False, "SIGSEGV")],
)
def test_an_end_is_named(status: int, out_of_memory: bool, words: str) -> None:
    assert ending(status, out_of_memory, 512) == words


@pytest.mark.parametrize("status", [0, 1, 137])
def test_an_end_for_want_of_memory_says_how_much_there_was(status: int) -> None:
    assert ending(status, True, 512) == (
        "out of memory: it may have 512 MB, a larger machine_type has more"
    )


def test_a_child_that_was_killed_for_memory_long_ago_has_not_ended_its_container() -> None:
    seen = Seen("runner", "log", killed_for_memory=100.0, died=160.0)
    assert not seen.out_of_memory
    assert replace(seen, died=100.2).out_of_memory
    assert replace(seen, died=0.0).out_of_memory
    assert not replace(seen, killed_for_memory=0.0).out_of_memory


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ('could not select device driver "" with capabilities: [[gpu]]', "nvidia-ctk"),
        ("nvidia-container-cli: initialization error", "NVIDIA Container Toolkit"),
        ("mkdir /var/lib/docker/tmp/x: no space left on device", "%fal prune"),
        ("OSError: [Errno 28] No space left on device", "%fal prune"),
    ],
)
def test_the_engine_is_understood(said: str, advice: str) -> None:
    assert advice in (meaning(said) or "")
    assert meaning("pull access denied") is None
