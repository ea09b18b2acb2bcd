"""The zip that ships to runners holds all that its own modules import."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from fal_notebook.backends.bundle import write_bundle

# Modules of the package that the zip lacks are looked for nowhere else.
_IMPORT_ALL = """
import importlib, sys
sys.path.insert(0, sys.argv[1])
for name in sys.argv[2:]:
    assert importlib.import_module(name).__file__.startswith(sys.argv[1]), name
"""


def test_every_shipped_module_finds_what_it_imports(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path)
    with zipfile.ZipFile(bundle) as archive:
        files = [name for name in archive.namelist() if name.startswith("fal_notebook/")]
    names = [file.removesuffix(".py").replace("/", ".") for file in files]
    modules = [name for name in names if not name.endswith(("__init__", "__main__"))]
    assert "fal_notebook.runner.serve" in modules
    command = [sys.executable, "-c", _IMPORT_ALL, str(bundle), *modules]
    subprocess.run(command, check=True, cwd=tmp_path)
