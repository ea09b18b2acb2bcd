"""What is built and installed is the whole package, and nothing but it."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import metadata, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import fal_notebook

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fal_notebook"
# Run as commands, needed on Python 3.10 only, brought by another's extra, or what anywidget makes.
DECLARED_ONLY = {"uv", "tomli", "python-multipart", "ipywidgets"}
# Pillow is for those who make images: the toolkit asks for it when one is made. fal's SDK serves
# its own classes, in their runners.
IMPORTED_ONLY = {"pydantic-core", "uvloop", "tomli", "pillow", "fal"}

# Of the extra `otel`: many distributions share this name.
EXTRAS = {"opentelemetry"}


def build(kind: str, source: Path, out: Path) -> Path:
    """The ``kind`` ("sdist" or "wheel") of ``source``, built with the tests' own hatchling."""
    command = [sys.executable, "-m", "build", "--no-isolation", f"--{kind}", "--outdir", str(out)]
    subprocess.run([*command, str(source)], check=True, capture_output=True)
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


@pytest.mark.skipif(
    "FAL_NOTEBOOK_TEST_INSTALLED" not in os.environ, reason="only make test installs the wheel"
)
def test_the_installed_wheel_is_what_is_tested() -> None:
    assert "site-packages" in Path(fal_notebook.__file__).parts
    child = [sys.executable, "-c", "import fal_notebook; print(fal_notebook.__file__)"]
    assert subprocess.check_output(child, text=True).strip() == fal_notebook.__file__


def test_version_has_one_source() -> None:
    assert metadata("fal-notebook")["Version"] == fal_notebook.__version__


def test_wheel_holds_every_module_and_the_type_marker(wheel: Path) -> None:
    expected = {str(path.relative_to(ROOT)) for path in [*sources(), PACKAGE / "py.typed"]}
    assert expected <= set(contents(wheel))


def test_wheel_holds_nothing_but_the_package_and_what_jupyter_finds(wheel: Path) -> None:
    own = f"fal_notebook-{fal_notebook.__version__}"
    names = set(contents(wheel))
    shared = {name for name in names if name.startswith(f"{own}.data/")}
    lab = f"{own}.data/data/share/jupyter/labextensions/fal-notebook/"
    assert {name for name in shared if not name.startswith(lab)} == {
        f"{own}.data/data/etc/ipython/ipython_kernel_config.json",
        f"{own}.data/data/etc/jupyter/jupyter_server_config.d/fal_notebook.json",
    }
    assert {f"{lab}package.json", f"{lab}install.json"} <= shared
    assert len([name for name in shared if name.startswith(f"{lab}static/remoteEntry.")]) == 1
    assert not any(name.startswith("fal_notebook/labextension") for name in names)
    tops = {name.split("/")[0] for name in names - shared}
    assert tops == {"fal_notebook", f"{own}.dist-info"}


def test_sdist_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    sdist = build("sdist", ROOT, tmp_path / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    unpacked = tmp_path / sdist.name.removesuffix(".tar.gz")
    assert contents(build("wheel", unpacked, tmp_path / "wheel")) == contents(wheel)


def test_dependencies_are_what_is_imported() -> None:
    imported = set()
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add((node.module or "").partition(".")[0])
    installed = packages_distributions()
    third_party = imported - sys.stdlib_module_names - {"fal_notebook"} - EXTRAS
    used = {canonicalize_name(installed.get(name, [name])[0]) for name in third_party}
    declared = {
        canonicalize_name(requirement.name)
        for requirement in map(Requirement, requires("fal-notebook") or [])
        if "extra ==" not in str(requirement.marker)
    }
    assert used - declared - IMPORTED_ONLY == set(), "imported, but not in pyproject.toml"
    assert declared - used - DECLARED_ONLY == set(), "in pyproject.toml, but not imported"
