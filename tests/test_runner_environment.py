"""Requirements become an environment of the runner's own, made by a real uv."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from inside import DeployFailed, ask, close_gateway, deployed, open_gateway, post

from fal_notebook.gateway.fleet import Fleet
from fal_notebook.gateway.gateway import Gateway


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One state folder, so that the environments of one test serve the next."""
    return tmp_path_factory.mktemp("environments")


@pytest.fixture
async def gateway(state: Path) -> AsyncIterator[Gateway]:
    gateway = open_gateway(state)
    yield gateway
    await close_gateway(gateway)


async def value(fleet: Fleet) -> Any:
    import json

    runner = await ask(fleet)
    try:
        status, content = await post(runner)
    finally:
        fleet.release(runner)
    assert status == 200, content
    return json.loads(content)


LOOK = """
import sys
def setup():
    import humanize
    return humanize
def f(humanize):
    missing = []
    for name in ("sklearn", "pytest", "IPython"):
        try: __import__(name)
        except ImportError: missing.append(name)
    import pydantic
    return {
        "said": humanize.intcomma(12345), "missing": missing, "last": sys.path[-1],
        "prefix": sys.prefix, "pydantic": [pydantic.VERSION, pydantic.__file__],
    }
"""


async def test_requirements_are_there_and_the_kernels_packages_are_not(
    gateway: Gateway, state: Path
) -> None:
    found = await value(await deployed(gateway, LOOK, requirements=["humanize"]))
    assert found["said"] == "12,345"
    assert found["missing"] == ["sklearn", "pytest", "IPython"]
    assert found["prefix"].startswith(str(state / "envs"))
    assert found["last"].startswith(str(state / "libraries"))
    assert found["pydantic"][1].startswith(found["last"])


PROGRAMS = """
import subprocess, sys
def f():
    asked = "import sys; print(sys.executable)"
    return [sys.executable, subprocess.check_output(["python", "-c", asked], text=True).strip()]
"""


@pytest.mark.parametrize("requirements", [["humanize"], []])
async def test_programs_that_an_app_starts_find_its_python(
    gateway: Gateway, requirements: list[str]
) -> None:
    given = {"requirements": requirements} if requirements else {}
    own, found = await value(await deployed(gateway, PROGRAMS, name="programs", **given))
    assert found == own
    assert ("/envs/" in own) == bool(requirements)


async def test_a_second_deploy_with_the_same_requirements_is_instant(gateway: Gateway) -> None:
    await deployed(gateway, LOOK, requirements=["humanize"])
    began = time.monotonic()
    await deployed(gateway, LOOK + "\n# changed", name="other", requirements=["humanize"])
    assert time.monotonic() - began < 2


async def test_the_users_own_pin_wins_over_the_runners_libraries(gateway: Gateway) -> None:
    source = """
import pydantic
def f(copy: int = 1, *, many: list[int] = [2], **more: int) -> list:
    return [pydantic.VERSION, pydantic.__file__, many]
"""
    fleet = await deployed(gateway, source, name="pinned", requirements=["pydantic==2.8.*"])
    version, file, *rest = await value(fleet)
    assert rest == [[2]]
    assert version.startswith("2.8.")
    assert "/envs/" in file


@pytest.mark.parametrize(
    ("requirement", "reason"),
    [
        ("humanize==0.0.0.1", "no version of humanize==0.0.0.1"),
        ("pydantic<2", "the runner needs pydantic>=2"),
    ],
)
async def test_what_cannot_be_had_fails_the_deploy_and_what_runs_goes_on(
    gateway: Gateway, requirement: str, reason: str
) -> None:
    fleet = await deployed(gateway, "def f(): return 'old'", name="kept")
    with pytest.raises(DeployFailed, match=reason):
        await deployed(gateway, "def f(): return 'new'", name="kept", requirements=[requirement])
    assert await value(fleet) == "old"
