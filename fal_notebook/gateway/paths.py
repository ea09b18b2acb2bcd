"""Names of files inside the state folder, in one place."""

from __future__ import annotations

from pathlib import Path


def blob(state: Path, digest: str) -> Path:
    """Return the file of a payload or build context by its SHA-256, checked by the caller."""
    return state / "blobs" / digest


def runner_folder(state: Path, runner_id: str) -> Path:
    """Return a runner's working folder, made when it is missing; the state folder is not."""
    folder = state / "runners" / runner_id
    for path in (folder.parent, folder):
        path.mkdir(exist_ok=True, mode=0o700)
    return folder


def data_folder(state: Path, owner: str) -> Path:
    """Return the folder that all runners of an owner share, made when it is missing."""
    folder = state / "data" / owner
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def runner_log(state: Path, runner_id: str) -> Path:
    """Return the file of a runner's output; its folder is made when it is missing."""
    return log_in(logs_folder(state), runner_id)


def logs_folder(state: Path) -> Path:
    """Return the folder of all logs, made when it is missing."""
    folder = state / "logs"
    folder.mkdir(exist_ok=True, mode=0o700)
    return folder


def log_in(folder: Path, runner_id: str) -> Path:
    """Return the file of a runner's output in the folder of all logs."""
    return folder / f"{runner_id}.log"
