"""GPUs of this machine: who has which, who waits, and what a runner sees of them."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import docker
import pytest
from effects import effect_of, given
from serving import deployed, kill_gateway

from fal_notebook import discovery
from fal_notebook.deploying import deploy
from fal_notebook.exceptions import BuildError, DeployError
from fal_notebook.gateway.gpus import Gpus
from fal_notebook.machines import visible_gpus

# Stands in for NVIDIA's library, which counts two GPUs.
NVML = """
class NVMLError(Exception):
    pass
def nvmlInit(): pass
def nvmlShutdown(): pass
def nvmlDeviceGetCount(): return 2
"""
SOURCE = "def seen(x: int):\n    import os; return os.environ.get('CUDA_VISIBLE_DEVICES')\n"


@pytest.fixture
def two_gpus(own_gateway: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A gateway of its own on a machine that says it has two GPUs."""
    (tmp_path / "pynvml.py").write_text(NVML)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return own_gateway


@pytest.mark.parametrize(
    ("visible", "ids"),
    [
        (None, ("0", "1", "2")),
        ("2,0", ("2", "0")),
        ("1, GPU-8932f937", ("1", "GPU-8932f937")),
        ("0,-1,2", ("0",)),
        ("0,7,1", ("0",)),
        ("", ()),
        ("none", ()),
    ],
)
def test_a_machine_has_the_gpus_that_its_environment_lets_through(
    visible: str | None, ids: tuple[str, ...]
) -> None:
    assert visible_gpus(3, visible) == ids
    assert visible_gpus(0, visible) == ()


async def test_each_runner_gets_gpus_of_its_own_and_waits_for_them() -> None:
    gpus = Gpus(["0", "1", "2"])
    assert await gpus.take("a", 2, lambda: True) == ("0", "1")
    waiting = asyncio.ensure_future(gpus.take("b", 2, lambda: True))
    await asyncio.sleep(0)
    assert (waiting.done(), gpus.free()) == (False, ("2",))
    gpus.give_back("a")
    assert await waiting == ("0", "1")
    assert (gpus.of("a"), gpus.of("b")) == ((), ("0", "1"))


async def test_a_runner_that_is_not_wanted_any_more_does_not_wait() -> None:
    gpus = Gpus(["0"])
    gpus.hold("adopted", ["0"])
    with pytest.raises(BuildError, match="while it waited"):
        await gpus.take("late", 1, lambda: False)
    with pytest.raises(BuildError, match="needs 2 GPUs and this machine has 1"):
        await gpus.take("large", 2, lambda: True)


def test_runners_see_their_own_gpus_also_after_a_restart_of_the_gateway(
    two_gpus: Path, eventually: Any
) -> None:
    options: dict[str, Any] = {"keep_alive": 300, "num_gpus": 1}
    with deployed(SOURCE, **options) as one:
        assert one(1) == "0"
        kill_gateway(two_gpus)
        eventually(lambda: discovery.find(two_gpus) is None)
        assert one(1) == "0"
        with deployed(SOURCE.replace("seen", "other"), **options) as other:
            assert other(1) == "1"


@effect_of("num_gpus")
def test_a_new_revision_takes_over_the_gpus_of_the_one_before(two_gpus: Path) -> None:
    with deployed(SOURCE, keep_alive=300, **given(num_gpus=2)) as seen:
        assert seen(1) == "0,1"
        with deployed(SOURCE + "    # changed", keep_alive=300, num_gpus=2) as seen:
            assert seen(1) == "0,1"


def test_who_waits_for_a_gpu_is_pending_and_gets_it_when_it_is_free(
    two_gpus: Path, eventually: Any
) -> None:
    with deployed(SOURCE, keep_alive=300, num_gpus=2) as first:
        names = {"__name__": "__main__"}
        exec(SOURCE.replace("seen", "late"), names)
        late = deploy(names["late"], num_gpus=1, startup_timeout=1)
        begun = time.monotonic()
        eventually(lambda: time.monotonic() > begun + 1.5)  # longer than a start may take
        assert [r["state"] for r in late.runners()] == ["PENDING"]
        first.delete()
        assert late(1) == "0"
        late.delete()


def test_an_engine_without_gpus_says_what_it_lacks(
    two_gpus: Path, docker_host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", docker_host)
    deploying = deployed(SOURCE, num_gpus=1, target="docker")
    with pytest.raises(DeployError, match=r"NVIDIA Container Toolkit"):
        deploying.__enter__()
    engine = docker.APIClient(docker_host)
    assert engine.containers(all=True, filters={"label": "fal-notebook.app=seen"}) == []
    engine.close()
