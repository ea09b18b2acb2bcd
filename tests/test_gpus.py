"""GPUs of this machine: who has which, who waits, and what a runner sees of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import time
from pathlib import Path
from typing import Any

import docker
import pytest
from effects import effect_of, given
from serving import control, deployed, kill_gateway
from test_cli import run

from fal_notebook import discovery
from fal_notebook.deploying import deploy
from fal_notebook.discovery import GatewayInfo
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
WAITS = "PENDING", "waits for 1 of 2 GPUs"
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
    told: list[str] = []
    assert await gpus.take("a", 2, lambda: True, told.append) == ("0", "1")
    waiting = asyncio.ensure_future(gpus.take("b", 2, lambda: True, told.append))
    await asyncio.sleep(0)
    assert (waiting.done(), gpus.free()) == (False, ("2",))
    assert [gpus.waits("a"), gpus.waits("b")] == ["", *told] == ["", "waits for 2 of 3 GPUs"]
    gpus.give_back("a")
    assert await waiting == ("0", "1")
    assert (gpus.of("a"), gpus.of("b")) == ((), ("0", "1"))
    assert gpus.waits("b") == ""


async def test_a_runner_that_is_not_wanted_any_more_does_not_wait() -> None:
    gpus = Gpus(["0"])
    gpus.hold("adopted", ["0"])
    with pytest.raises(BuildError, match="while it waited"):
        await gpus.take("late", 1, lambda: False, lambda cause: None)
    assert gpus.waits("late") == ""
    with pytest.raises(BuildError, match="needs 2 GPUs and this machine has 1"):
        await gpus.take("large", 2, lambda: True, lambda cause: None)


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
        assert [(r["state"], r["cause"]) for r in late.runners()] == [WAITS]
        assert recorded(two_gpus, "late") == WAITS
        assert late.status()["step"] == f"starting: {WAITS[1]}"
        first.delete()
        assert late(1) == "0"
        (runner,) = late.runners()
        assert (runner["gpus"], runner["cause"]) == (["0"], "")
        late.delete()


def recorded(state: Path, app: str) -> tuple[str, str]:
    """Return state and cause of the last change of an app's runners."""
    with contextlib.closing(sqlite3.connect(state / "store.db")) as store:
        query = "SELECT data FROM events WHERE app = ? AND kind = 'runner' ORDER BY seq DESC"
        data = json.loads(store.execute(query, [app]).fetchone()[0])
    return data["state"], data["cause"]


def test_who_holds_gpus_and_who_waits_is_shown(two_gpus: Path, eventually: Any) -> None:
    options: dict[str, Any] = {"keep_alive": 300, "max_concurrency": 3, "min_concurrency": 3}
    with deployed(SOURCE, num_gpus=1, **options) as seen:
        eventually(lambda: sorted(r["gpus"] for r in seen.runners()) == [[], ["0"], ["1"]])
        eventually(lambda: [r["state"] for r in seen.runners()].count("IDLE") == 2)
        head, *lines = run("runners", "seen").splitlines()
        assert head.split()[3:7] == ["flight", "machine", "GPUs", "age"]
        assert sorted(line.split()[4] for line in lines if "IDLE" in line) == ["0", "1"]
        assert [line.endswith(f" {WAITS[1]}") for line in lines if "PENDING" in line] == [True]
        assert "512 MB, 0.5 cores, 1 GPU" in run("status", "seen")
        both = {"gpus": 2, "gpus_total": 2}
        assert counted(two_gpus) == {**both, "gpus_free": 0, "gpus_allotted": 2}
    eventually(lambda: counted(two_gpus) == {**both, "gpus_free": 2, "gpus_allotted": 0})


def counted(state: Path) -> dict[str, float]:
    """Return what a gateway tells of its GPUs: its status and its metrics."""
    status = dict(line.split(None, 1) for line in run("gateway", "status").splitlines()[1:])
    gateway = discovery.find(state)
    assert gateway is not None
    with control(gateway) as client:
        lines = client.get("/metrics").text.splitlines()
    told = [(name, status[name]) for name in ("gpus", "gpus_free")]
    told += [line.split() for line in lines if line.startswith("fal_notebook_gpus_")]
    return {name.removeprefix("fal_notebook_"): float(value) for name, value in told}


def test_who_asks_for_more_than_the_machine_has_gets_that_and_is_told(two_gpus: Path) -> None:
    told = r"no machine of type XS \(512 MB, 0.5 cores, 4 GPUs\), so a runner gets .*, 2 GPUs"
    with pytest.warns(UserWarning, match=told), deployed(SOURCE, num_gpus=4) as seen:
        assert seen(1) == "0,1"


def test_where_no_runner_has_gpus_they_have_no_column(gateway: GatewayInfo) -> None:
    with deployed(SOURCE, keep_alive=300) as seen:
        assert [r["gpus"] for r in seen.runners()] == [[]]
        assert "GPUs" not in run("runners", "seen")


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
