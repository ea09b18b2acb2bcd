"""The zip that ships to runners holds all that its own modules import."""

from __future__ import annotations

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

from packaging.requirements import Requirement

from fal_notebook.backends.bundle import write_bundle
from fal_notebook.backends.runner_libraries import RUNNER_LIBRARIES

# Modules of the package that the zip lacks are looked for nowhere else.
_IMPORT_ALL = """
import importlib, sys
sys.path.insert(0, sys.argv[1])
for name in sys.argv[2:]:
    assert importlib.import_module(name).__file__.startswith(sys.argv[1]), name
"""


# Modules of fal's that only say that they are left out.
LEFT_OUT = (".compilation", ".constraints")


def test_every_shipped_module_finds_what_it_imports(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path)
    with zipfile.ZipFile(bundle) as archive:
        files = [name for name in archive.namelist() if name.startswith("fal_notebook/")]
    names = [file.removesuffix(".py").replace("/", ".") for file in files]
    others = ("__init__", "__main__", *LEFT_OUT)
    modules = [name for name in names if not name.endswith(others)]
    assert "fal_notebook.runner.serve" in modules
    command = [sys.executable, "-c", _IMPORT_ALL, str(bundle), *modules]
    subprocess.run(command, check=True, cwd=tmp_path)


# What pydantic brings, and what only code of the user's does: its own FastAPI, fal's SDK, images.
BROUGHT = {"pydantic_core", "typing_extensions", "fastapi", "fal", "PIL"}


def test_what_is_shipped_imports_nothing_but_the_runners_libraries(tmp_path: Path) -> None:
    libraries = {Requirement(line).name for line in RUNNER_LIBRARIES}
    with zipfile.ZipFile(write_bundle(tmp_path)) as archive:
        for name in archive.namelist():
            tops = {top.partition(".")[0] for top in _imported(archive.read(name))}
            assert tops <= {*libraries, *BROUGHT, *sys.stdlib_module_names, "fal_notebook"}, name


def _imported(source: bytes) -> set[str]:
    nodes = list(ast.walk(ast.parse(source)))
    plain = {a.name for node in nodes if isinstance(node, ast.Import) for a in node.names}
    return plain | {n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)}
