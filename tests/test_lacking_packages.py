"""What helps where a runner lacks a package that the kernel has."""

from __future__ import annotations

from importlib.metadata import version

import pytest

from fal_notebook.lacking_packages import advice

HTTPX, YAML = f"httpx=={version('httpx')}", f"pyyaml=={version('pyyaml')}"
LOADED = "the payload cannot be loaded (ModuleNotFoundError: No module named 'httpx'); it was made"


@pytest.mark.parametrize(
    ("error", "own_image", "said"),
    [
        ("ModuleNotFoundError: No module named 'yaml.x'", True, f"add `RUN pip install {YAML}` to"),
        (
            f"{LOADED} with httpx 0.28, here is none, and with yaml 6, here is 5",
            True,
            f"add `RUN pip install {HTTPX} {YAML}` to the image",
        ),
        (
            f"{LOADED} with httpx 0.28, here is none",
            False,
            f"give the kernel's versions in requirements: {HTTPX}",
        ),
        ("ModuleNotFoundError: No module named 'yaml'", False, ""),
        ("ModuleNotFoundError: No module named 'only_here'", True, ""),
        ("ValueError: x", True, ""),
    ],
)
def test_lacking_packages_are_named_for_pip(error: str, own_image: bool, said: str) -> None:
    assert advice(error, own_image).startswith(said)
    assert bool(advice(error, own_image)) == bool(said)
