"""Where an account's shared storage is: the same files for all its runners, kept over deploys."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def data_folder() -> Path:
    """Return the shared storage's folder in this process."""
    told = os.environ.get("FAL_DATA_DIR")
    if told is not None:
        return Path(told)
    if "FAL_RUNNER_ID" in os.environ:
        return Path("/data")
    from fal_notebook import settings

    return settings.state_folder() / "data" / settings.owner()


_BASE = data_folder()


class SharedPath(type(Path())):  # type: ignore[misc]
    """A path in the shared storage; a captured one is found again where a runner has that."""

    def __reduce__(self) -> tuple[Any, ...]:
        return shared_path, self.relative_to(_BASE).parts


def shared_path(*parts: str) -> Path:
    """Return a path in the shared storage."""
    path: Path = SharedPath(data_folder().joinpath(*parts))
    return path


FAL_PERSISTENT_DIR = shared_path()
FAL_REPOSITORY_DIR = shared_path(".fal", "repos")
FAL_MODEL_WEIGHTS_DIR = shared_path(".fal", "model_weights")
