"""What the Docker engine's refusals mean and what to do about them, in one sentence each."""

from __future__ import annotations

import re

_GPU = re.compile(r"could not select device driver|nvidia-container|unresolvable CDI devices", re.I)
_FULL = re.compile(r"no space left on device|ENOSPC|disk quota exceeded", re.I)


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
            "a machine_type without a GPU, or target=local"
        )
    return None
