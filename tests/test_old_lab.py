"""The oldest JupyterLab that is supported, in an environment without Node, from the wheel alone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from browsers import lab
from jupyter_servers import jupyter, notebook
from playwright.sync_api import Browser, expect
from test_packaging import ROOT, build

ODD = "%%fal_function odd keep_alive=2\ndef odd(x: int) -> int:\n    return x"


class Environment:
    """A virtual environment whose programs find no Node."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = str(folder / "bin" / "python")
        self._uv("venv", "--quiet", "--python", sys.executable, str(folder))

    def install(self, *packages: str) -> None:
        self._uv("pip", "install", "--quiet", "--python", self.python, *packages)

    def uninstall(self, package: str) -> None:
        self._uv("pip", "uninstall", "--quiet", "--python", self.python, package)

    def jupyter(self, *arguments: str) -> str:
        """Return what a command of Jupyter says."""
        command = [self.python, "-m", "jupyter", *arguments]
        environment = {**os.environ, "PATH": str(self.folder / "bin"), "NO_COLOR": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    def _uv(self, *arguments: str) -> None:
        subprocess.run([sys.executable, "-m", "uv", *arguments], check=True)


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    environment = Environment(tmp_path_factory.mktemp("old") / "venv")
    wheel = build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))
    environment.install(str(wheel), "jupyterlab==4.4.*", "ipykernel")
    return environment


def test_the_wheel_brings_both_extensions_without_node(old: Environment) -> None:
    extensions = old.jupyter("labextension", "list")
    (own,) = (line for line in extensions.splitlines() if "fal-notebook" in line)
    assert ("enabled" in own, "OK" in own) == (True, True)
    servers = old.jupyter("server", "extension", "list")
    assert "fal_notebook.server enabled" in servers.replace("\x1b[32m", "").replace("\x1b[0m", "")


def test_the_card_lives_there(
    old: Environment, browser: Browser, tmp_path: Path, lab_state: Path
) -> None:
    with (
        jupyter(tmp_path / "lab", "lab", python=old.python) as server,
        lab(browser, server) as page,
    ):
        notebook(server.root / "a.ipynb", "%load_ext fal_notebook", ODD, "odd(3)")
        page.open("a.ipynb")
        for number in range(3):
            page.run(number)
        expect(page.card(1)).to_contain_text("1 runner")
        page.save()
        page.page.reload()
        expect(page.card(1)).to_contain_text("scaled to zero")


def test_nothing_is_left_of_it(old: Environment) -> None:
    old.uninstall("fal-notebook")
    found = (path.relative_to(old.folder) for path in old.folder.rglob("*") if path.is_file())
    assert [path for path in found if re.search("fal.notebook", str(path))] == []
    assert "fal-notebook" not in old.jupyter("labextension", "list")
