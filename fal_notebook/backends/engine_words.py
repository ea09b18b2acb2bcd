"""What the Docker engine's refusals mean and what to do about them, in one sentence each."""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence

# What else can be done without an engine; images, those of Dockerfiles too, need one.
OTHERWISE = "an app without an image also runs with target=local"

_GPU = re.compile(r"could not select device driver|nvidia-container|unresolvable CDI devices", re.I)
_FULL = re.compile(r"no space left on device|ENOSPC|disk quota exceeded", re.I)
_FOREIGN = re.compile(r"exec format error", re.I)
_PYDANTIC = re.compile(r"requirements bring pydantic .*, the runner needs ≥ 2")
_NO_PROGRAM = re.compile(r"no command specified", re.I)


def meaning(said: str) -> str | None:
    """Return what the engine's words mean for the user; None when they say it themselves."""
    if _FULL.search(said):
        return (
            "the disk of the Docker engine is full: `%fal prune` removes images and containers "
            "that no app needs, `docker system prune` also those of others"
        )
    if _GPU.search(said):
        return (
            "the Docker engine gives containers no GPU: install the NVIDIA Container Toolkit, run "
            "`sudo nvidia-ctk runtime configure --runtime=docker`, restart the engine; or choose "
            f"a machine_type without a GPU; {OTHERWISE}"
        )
    if _FOREIGN.search(said):
        return (
            f"its programs are for another machine than this one, {platform.machine()}: take a "
            "base image for this one, or leave out --platform"
        )
    if found := _PYDANTIC.search(said):
        return found[0]
    if _NO_PROGRAM.search(said):
        return "the image names no program: write CMD into the Dockerfile, or give cmd="
    return None


def misfit(image: str, engine: str, said: str) -> str:
    """Return why programs of an image that failed cannot run, "" when they may have run.

    Images of another architecture run where they are emulated, so this is asked after a failure.

    Parameters
    ----------
    image, engine : str
        The architecture of the image and that of the engine, as the engine names them.
    said : str
        What the failure left.
    """
    if image != engine:
        return (
            f"the image is made for {image} and the Docker engine's machine is {engine}: take or "
            "build it for this one, or leave out --platform"
        )
    if _FOREIGN.search(said):
        return (
            f"the image says that it is made for {engine}, as is this machine, but its program is "
            "for another one, or is a script without #! in its first line"
        )
    return ""


def failure(step: str, reason: str, last: Sequence[str]) -> str:
    """Return one sentence about a build that failed.

    Parameters
    ----------
    step : str
        Such as ``Step 2/3 : RUN false``; empty when none had begun.
    last : sequence of str
        What the step printed last.
    """
    known = meaning("\n".join([reason, *last]))
    begin = (
        f"the image could not be built, {step} failed" if step else "the image could not be built"
    )
    return f"{begin}: {known or reason}"
