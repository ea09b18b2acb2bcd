"""Names of files inside the state folder, in one place."""

from __future__ import annotations

import contextlib
from pathlib import Path

from fal_notebook.settings import SECRETS_KEY

# Keys, and what secrets are kept in, wherever a backup or a copy may have widened their mode.
_PRIVATE = (SECRETS_KEY, "token", "store.db*", "queue.db*", "storage.db*", "tls/*.pem")


def blob(state: Path, digest: str) -> Path:
    """Return the file of a payload; `digest` is its SHA-256 in hex, checked by the caller."""
    return state / "blobs" / digest


def token(state: Path) -> Path:
    """Return the file of the owner's token."""
    return state / "token"


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


def make_private(state: Path) -> None:
    """Take from other users what they may not read; before any of it is opened."""
    for path in (path for pattern in _PRIVATE for path in state.glob(pattern)):
        with contextlib.suppress(OSError):  # it may be another user's, as root's after a restore
            if path.stat().st_mode & 0o077:
                path.chmod(0o600)
