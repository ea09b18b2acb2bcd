"""Images with older versions of what the runner's libraries need: they are kept, and it works."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from cells import OLD_PINS
from serving import deployed

from fal_notebook.container import ContainerImage
from fal_notebook.exceptions import DeployError

BASE = "python:{}.{}-slim".format(*sys.version_info)
SOURCE = """
def versions(name: str) -> str:
    from importlib.metadata import version
    return version(name)
"""


def image(*pins: str) -> ContainerImage:
    return ContainerImage.from_dockerfile_str(f"FROM {BASE}\nRUN pip install {' '.join(pins)}\n")


@pytest.mark.parametrize(
    "pins",
    [
        ["typing-extensions==4.12.2"],
        OLD_PINS,
        ["anyio==4.0.0"],
    ],
)
def test_what_an_image_has_is_kept_and_works(containers: Path, pins: list[str]) -> None:
    with deployed(SOURCE, image=image(*pins)) as handle:
        for name, _, version in (pin.partition("==") for pin in pins):
            assert handle(name) == version


def test_what_requirements_bring_into_an_image_too(containers: Path) -> None:
    pin = {"requirements": ["typing-extensions==4.12.2"], "target": "docker"}
    with deployed(SOURCE, **pin) as handle:
        assert handle("typing-extensions") == "4.12.2"


def test_what_the_runner_cannot_use_is_named(containers: Path) -> None:
    said = r"versions: the image brings cloudpickle 1\.6\.0, and the runner needs cloudpickle>=3\.0"
    with (
        pytest.raises(DeployError, match=said),
        deployed(SOURCE, image=image("cloudpickle==1.6.0")),
    ):
        pass
    said = r"requirements bring cloudpickle 1\.6\.0, and the runner needs cloudpickle>=3\.0"
    pin = {"requirements": ["cloudpickle<2"], "target": "docker"}
    with pytest.raises(DeployError, match=said), deployed(SOURCE, **pin):
        pass
