"""The first thing a checkout does: make a virtual environment, or say in one sentence why not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def make_venv(
    folder: Path, python: Path | str = sys.executable
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", ".ci/venv", str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHON": str(python)},
        capture_output=True,
        text=True,
        check=False,
    )


def fake_python(folder: Path, prelude: str) -> Path:
    """A python3 that runs ``prelude`` before the code that it is given with -c."""
    fake = folder / "python3"
    fake.write_text(f'#!/bin/sh\nshift\nexec "{sys.executable}" -c "{prelude}\n$1"\n')
    fake.chmod(0o755)
    return fake


@pytest.mark.parametrize(
    ("prelude", "sentence"),
    [
        ("import sys; sys.modules['ensurepip'] = None", "install the package python3."),
        ("import sys; sys.version_info = (3, 9, 2)", "needs Python 3.10 or newer"),
    ],
)
def test_an_unfit_python_gets_one_sentence(tmp_path: Path, prelude: str, sentence: str) -> None:
    result = make_venv(tmp_path / "venv", fake_python(tmp_path, prelude))
    assert result.returncode == 1
    assert sentence in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "venv").exists()


def test_no_python_gets_one_sentence(tmp_path: Path) -> None:
    result = make_venv(tmp_path / "venv", tmp_path / "python3")
    assert result.returncode == 1
    assert "was not found" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_half_made_environment_is_made_anew(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").symlink_to(tmp_path / "gone")
    assert make_venv(venv).returncode == 0
    subprocess.run([venv / "bin" / "python", "-m", "uv", "--version"], check=True)
    assert make_venv(venv).stdout == ""


@pytest.mark.parametrize(("user", "said"), [(0, ["--allow-root"]), (1000, [])])
def test_make_lab_lets_root_start_jupyter(tmp_path: Path, user: int, said: list[str]) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    programs = {".ci/venv": "", ".venv/bin/python": 'echo "$@"', "bin/id": f"echo {user}"}
    programs["bin/node"] = ""
    for path, does in programs.items():
        program = tmp_path / path
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(f"#!/bin/sh\n{does}\n")
        program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    command = ["make", "--no-print-directory", "lab", "ARGS=--no-browser"]
    shown = subprocess.check_output(command, cwd=tmp_path, env=environment, text=True).splitlines()
    lab = ["-m", "jupyterlab", "notebooks/01-quickstart.ipynb", *said, "--no-browser"]
    assert shown == ["labextension/backend.py", " ".join(lab)]
