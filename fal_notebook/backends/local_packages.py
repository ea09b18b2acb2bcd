"""Requirements that lie on this machine, made into files that an image installs; by uv."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from fal_notebook.backends.uv_process import Progress, os_errors_translated, run_uv
from fal_notebook.exceptions import BuildError
from fal_notebook.image import PACKAGES, Layer, Tree

# Of a project, what building it leaves there, and what no package is made of.
_ASIDE = re.compile(r"\..*|__pycache__|build|dist|.*\.egg-info|node_modules|s?venv")
_LINE = re.compile(
    r"(?:[\w.-]+\s*(?P<named>\[[^]]*\])?\s*@\s*)?"
    r"(?P<url>file:[^;\s\[]+|/[^;\[]+?)\s*(?P<extras>\[[^]]*\])?\s*(?P<marker>;.*)?"
)
_FILES = (".whl", ".tar.gz", ".zip")


@dataclass(frozen=True)
class Local:
    """A requirement that is a folder or file of this machine, and what else its line says."""

    path: Path
    extras: str = ""
    marker: str = ""

    def line(self, file: str) -> str:
        """Return the line for an image that has `file` in its place."""
        return f"{PACKAGES}/{file}{self.extras}{' ' if self.marker else ''}{self.marker}"


def parse(line: str) -> Local | None:
    """Return what a line names on this machine; None for what comes from elsewhere."""
    found = _LINE.fullmatch(line.strip())
    if found is None:
        return None
    url = found["url"]
    path = unquote(urlsplit(url).path) if url.startswith("file:") else url
    extras = found["extras"] or found["named"] or ""
    return Local(Path(path), extras, found["marker"] or "")


async def layers(
    state: Path, requirements: Sequence[Sequence[str]], interpreter: str, progress: Progress
) -> list[Layer]:
    """Return the layers of an image, with files in place of what lies here.

    Parameters
    ----------
    state : Path
        The gateway's state folder, where packages are kept that were built.
    requirements : sequence of sequences of str
        Lines for pip; paths are absolute.
    interpreter : str
        Builds them.

    Raises
    ------
    BuildError
        With uv's reason, or when there is nothing at a path.
    """
    found = []
    for given in requirements:
        lines, files = list[str](), dict[str, Tree]()
        for line in given:
            local = parse(line)
            if local is not None:
                file = await _file(state / "packages", local.path, interpreter, progress)
                files[file.name] = Tree(file, file.parent.name)
                line = local.line(file.name)
            lines.append(line)
        found.append(Layer(tuple(lines), files))
    return found


async def _file(root: Path, path: Path, interpreter: str, progress: Progress) -> Path:
    """Return a wheel or source distribution; its folder's name says what is in it."""
    if path.is_dir():
        return await _built(root, path, interpreter, progress)
    if not path.is_file():
        raise BuildError(f"requirements names {path}, but there is nothing")
    if not path.name.endswith(_FILES):
        raise BuildError(f"requirements names {path}, which is no {', '.join(_FILES)} or folder")
    folder = root / hashlib.sha256(path.read_bytes()).hexdigest()[:24]
    if not (folder / path.name).is_file():
        with os_errors_translated(root):
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / path.name)
    return folder / path.name


async def _built(root: Path, project: Path, interpreter: str, progress: Progress) -> Path:
    """Build a project unless nothing of it has changed; a wheel that fits each Linux is taken."""
    folder = root / stamp(project, interpreter)
    if kept := sorted(folder.glob("*")):
        return kept[0]
    root.mkdir(exist_ok=True)
    with os_errors_translated(root), tempfile.TemporaryDirectory(dir=root) as draft:
        command = ["build", "--python", interpreter, "--out-dir", draft, str(project)]
        await run_uv(command, project, f"building {project}", progress)
        made = sorted(Path(draft).glob("*-none-any.whl")) or sorted(Path(draft).glob("*.tar.gz"))
        if not made:
            raise BuildError(f"building {project} made neither a wheel nor a source distribution")
        folder.mkdir(exist_ok=True)
        return Path(shutil.move(made[0], folder / made[0].name))


def stamp(project: Path, interpreter: str) -> str:
    """Return what changes whenever a file of a project is changed."""
    found = sorted((str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in _sources(project))
    return hashlib.sha256(repr((found, interpreter)).encode()).hexdigest()[:24]


def _sources(project: Path) -> Iterator[Path]:
    for folder, below, names in os.walk(project):
        below[:] = [name for name in below if not _ASIDE.fullmatch(name)]
        yield from (Path(folder, name) for name in names if os.path.isfile(Path(folder, name)))
