"""Python environments for runners on this machine, made by uv; what runs in them, others know."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from fal_notebook.backends.generations import Place, ensure_built
from fal_notebook.backends.uv_process import Progress, run_uv
from fal_notebook.exceptions import BuildError
from fal_notebook.local_requirements import fingerprints, folders

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # the same library under its older name

__all__ = ["EnvironmentSpec", "Progress", "ensure", "installed"]


@dataclass(frozen=True)
class EnvironmentSpec:
    """What an environment is made of.

    Attributes
    ----------
    interpreter : str
        The kernel's Python executable; the environment uses the same installation.
    python_version : str
        Its version, as "3.11.7" or "3.11".
    requirements : tuple of tuple of str
        Layers, installed one after the other. A line may also be an option of a requirements
        file, such as ``--extra-index-url URL``.
    compile_bytecode : bool
        Compile at build time; no part of the key, so it does nothing to what is already built.
    """

    interpreter: str
    python_version: str
    requirements: tuple[tuple[str, ...], ...]
    compile_bytecode: bool = False

    def key(self) -> str:
        """Return the name under which environments with the same content are shared."""
        parts: list[object] = [self.python_version, implementation(self.interpreter)]
        local = fingerprints(self.requirements)
        return hashed(*parts, self.layers(), *([local] if local else []))

    def layers(self) -> list[list[str]]:
        """Return the requirements as they are installed: each layer sorted, empty ones left out."""
        layers = [{_normalised(line) for line in layer} - {""} for layer in self.requirements]
        return [sorted(layer) for layer in layers if layer]


async def ensure(
    root: Path, spec: EnvironmentSpec, progress: Progress, *, force: bool = False
) -> Path:
    """Return an environment's Python, building it first if there is none.

    Parameters
    ----------
    root : Path
        The state folder.
    spec : EnvironmentSpec
    progress : callable
        Gets lines of text while something is built, on the event loop; it must not block.
    force : bool
        Build anew beside a complete environment; running runners keep the old one.

    Returns
    -------
    Path
        The executable ``bin/python`` of a complete environment.

    Raises
    ------
    BuildError
        With uv's reason. Nothing is left behind then, nor after a cancellation.
    """

    async def build(folder: Path) -> None:
        await _make_venv(folder, spec, progress)
        layers = spec.layers()
        for number, layer in enumerate(layers, 1):
            arguments = ["--python", str(folder / "bin" / "python")]
            arguments += ["--compile-bytecode"] if spec.compile_bytecode else []
            arguments += _refreshed(layer)
            await install(folder, number, layer, arguments, progress)

    place = Place(root / "envs" / spec.key(), "bin/python", asdict(spec))
    return await ensure_built(place, build, progress, force) / "bin" / "python"


def installed(python: Path) -> dict[str, str]:
    """Return the distributions of an environment and their versions, by the names of its files."""
    found = python.parents[1].glob("lib/python*/site-packages/*.dist-info")
    pairs = (path.stem.partition("-") for path in found)
    return {canonicalize_name(name): version for name, _, version in pairs}


# --- the steps of a build ------------------------------------------------------------------------


async def _make_venv(folder: Path, spec: EnvironmentSpec, progress: Progress) -> None:
    arguments = ["venv", "--no-project", "--python", spec.interpreter, str(folder)]
    await run_uv(arguments, folder.parent, "making the environment", progress)
    built = _venv_version(folder)
    if built and _minor(built) != _minor(spec.python_version):
        raise BuildError(
            f"{spec.interpreter} is Python {built} now, but the function was captured with "
            f"{spec.python_version}; restart the kernel and run the cell again"
        )


async def install(
    folder: Path, number: int, layer: Sequence[str], arguments: Sequence[str], progress: Progress
) -> None:
    """Install lines of requirements, the layer of that number, as arguments of uv say."""
    # A file instead of arguments: its lines cannot become options of uv's command line.
    lines = _written(folder / f"requirements-{number}.txt", layer)
    shown = ", ".join(layer[:3]) + (f" and {len(layer) - 3} more" if len(layer) > 3 else "")
    command = ["pip", "install", *arguments, "--requirements", lines.name]
    await run_uv(command, folder, f"installing {shown}", progress)


def _refreshed(layer: Sequence[str]) -> list[str]:
    """Have uv build folders anew: it would take what it built before their files changed."""
    names = filter(None, map(_project_name, folders(layer)))
    return [word for name in names for word in ("--refresh-package", name)]


def _project_name(folder: Path) -> str | None:
    try:
        text = (folder / "pyproject.toml").read_text(encoding="utf-8")
        name = tomllib.loads(text)["project"]["name"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return name if isinstance(name, str) and name and not name.startswith("-") else None


def _written(path: Path, lines: Sequence[str]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def _venv_version(folder: Path) -> str | None:
    text = (folder / "pyvenv.cfg").read_text(encoding="utf-8")
    match = re.search(r"^version_info\s*=\s*(\S+)", text, re.MULTILINE)
    return match and match[1]


# --- names ---------------------------------------------------------------------------------------


def hashed(*parts: object) -> str:
    """Return a name for what is made of these parts on such a machine."""
    text = json.dumps([sysconfig.get_platform(), *parts])
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def implementation(interpreter: str) -> str:
    """Tell CPython, its free-threaded build and PyPy apart without starting the interpreter."""
    name = Path(os.path.realpath(interpreter)).name.lower()
    base = "pypy" if "pypy" in name else "cpython"
    return f"{base}t" if re.search(r"3\.\d+t$", name) else base


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _normalised(line: str) -> str:
    try:
        requirement = Requirement(line)
    except InvalidRequirement:
        return line.strip()  # a path, a URL or an option: uv judges it
    requirement.name = canonicalize_name(requirement.name)
    return str(requirement)
