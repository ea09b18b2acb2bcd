"""Requirements that are folders: found, told apart by what is in them, installed anew."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from test_cli import run

from fal_notebook import Handle
from fal_notebook.exceptions import GatewayError
from fal_notebook.local_requirements import fingerprints, folders

PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "lr-project"
version = "1.0"
[tool.hatch.build.targets.wheel]
packages = ["src/lr_project"]

[tool.fal.apps.lr-app]
python_entry_point = "lr_project.app:told"
requirements = ["."]
"""
CODE = "def told() -> str:\n    import lr_project\n    return 'first ' + lr_project.__file__\n"


def test_folders_are_told_from_the_rest(tmp_path: Path) -> None:
    (tmp_path / "a.whl").touch()
    lines = [
        "numpy",
        f"{tmp_path}[x]",
        f"{tmp_path}/a.whl",
        f"{tmp_path}/nothing",
        "git+https://a/b",
    ]
    assert folders(lines) == folders([lines, [str(tmp_path)]]) == [tmp_path]
    assert folders(None) == []


def test_what_a_build_is_made_of_changes_the_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").touch()
    os.mkfifo(tmp_path / "pipe")
    seen = [fingerprints([str(tmp_path)])]

    def changes(path: str, content: bytes) -> bool:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
        seen.append(fingerprints([str(tmp_path)]))
        return seen[-1] != seen[-2]

    assert changes("src/a.py", b"1")
    assert not changes("src/a.py", b"1")
    assert changes("src/a.py", b"2")
    assert changes("data.bin", bytes(2_000_000))
    assert not changes("src/__pycache__/a.pyc", b"1")
    assert not changes(".git/HEAD", b"1")
    assert not changes("my.ipynb", b"1")
    os.symlink("nowhere", tmp_path / "broken")
    assert fingerprints([str(tmp_path)])  # a link that leads nowhere is no error


def test_what_is_no_project_is_not_read(tmp_path: Path) -> None:
    before = fingerprints([str(tmp_path)])
    (tmp_path / "a.py").write_text("1")
    assert fingerprints([str(tmp_path)]) == before == {str(tmp_path): ""}
    assert fingerprints(["/"]) == {"/": ""}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gateway: object) -> Iterator[Path]:
    package = tmp_path / "src" / "lr_project"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "app.py").write_text(CODE)
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("lr_project")]:
        del sys.modules[name]
    with suppress(GatewayError):
        Handle("tester", "lr-app").delete()


def test_a_project_is_installed_as_it_is_now(project: Path) -> None:
    shown = run("deploy", "lr-app")
    assert "active (revision 1)" in shown
    assert "note" not in shown  # its module is in the environment
    told = Handle("tester", "lr-app")
    assert told().startswith("first ")
    assert "site-packages" in told()
    assert "up to date" in run("deploy", "lr-app")
    code = project / "src" / "lr_project" / "app.py"
    for word in ("second", "third"):
        code.write_text(CODE.replace("first", word))
        run("deploy", "lr-app")
        assert told().startswith(f"{word} ")
