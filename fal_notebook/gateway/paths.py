"""Names of files inside the state folder, in one place."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from fal_notebook.backends.limits import CONTAINED
from fal_notebook.settings import SECRETS_KEY

# The mode of what all runners of an owner share: what is made in it has its group.
SHARED = 0o2770
# Keys, and what secrets are kept in, wherever a backup or a copy may have widened their mode.
_PRIVATE = (SECRETS_KEY, "store.db*", "queue.db*", "storage.db*", "tls/*.pem")


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
    """Return the folder that all runners of an owner share, made when it is missing.

    Its group may write, and so may that of what is made in it: containers may have another user
    than the gateway, but belong to this group. Nobody else comes to the folder above it.
    """
    folder = state / "data" / owner
    for path in (folder.parent, folder):
        path.mkdir(exist_ok=True, mode=0o700)
    if os.stat(folder).st_mode & 0o7777 != SHARED:
        if os.getuid() == 0:
            os.chown(folder, -1, CONTAINED)
        os.chmod(folder, SHARED)
    return folder


def umask() -> int:
    """Return which rights new files of a local runner lack: root's are for containers too."""
    return 0o007 if os.getuid() == 0 else 0o077


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
