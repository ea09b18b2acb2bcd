"""Requirements that are folders of this machine: which these are, and what is in them now.

They have no version, so only what lies in them tells whether an environment is still theirs.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

# Nothing of a build is made from these; notebooks change whenever they are saved.
_LEFT_OUT = {"__pycache__", "node_modules", "venv", "build", "dist"}
_ENDINGS = (".pyc", ".ipynb", ".egg-info")
_PROJECT = ("pyproject.toml", "setup.py", "setup.cfg")
# Of a larger file size and time say enough.
_MOST_READ = 1_000_000


def folders(requirements: Any) -> list[Path]:
    """Return the folders among requirements, whose paths are absolute; layers may be given."""
    return list(dict.fromkeys(_folders(requirements or ())))


def fingerprints(requirements: Any) -> dict[str, str]:
    """Return a digest of the contents of each such folder, by its path."""
    return {str(folder): _fingerprint(folder) for folder in folders(requirements)}


def _folders(requirements: Iterable[Any]) -> Iterator[Path]:
    for item in requirements:
        if isinstance(item, (list, tuple)):
            yield from _folders(item)
        elif item.startswith("/") and (path := Path(item.partition("[")[0])).is_dir():
            yield path


def _fingerprint(folder: Path) -> str:
    if not any((folder / name).is_file() for name in _PROJECT):  # uv will refuse it
        return ""
    digest = hashlib.sha256()
    for path in _files(folder):
        digest.update(f"{path.relative_to(folder)}\0{_said_by(path)}\0".encode())
    return digest.hexdigest()[:24]


def _files(folder: Path) -> Iterator[Path]:
    for base, inner, files in os.walk(folder):
        inner[:] = sorted(_counting(inner))
        yield from (Path(base, name) for name in sorted(_counting(files)))


def _counting(names: Sequence[str]) -> list[str]:
    hidden = {name for name in names if name.startswith(".") or name.endswith(_ENDINGS)}
    return [name for name in names if name not in hidden | _LEFT_OUT]


def _said_by(path: Path) -> str:
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):  # a pipe would not end, a device neither
            return ""
        if about.st_size > _MOST_READ:
            return f"{about.st_size} {about.st_mtime_ns}"
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:  # gone meanwhile, a broken link, not for us to read
        return ""
