"""Python environments for runners on this machine, made by uv; what runs in them is left to others.

On disk, below the state folder (``root``)::

    envs/<key>/.lock          held by the one process that builds
    envs/<key>/1/             a generation: the environment itself
    envs/<key>/1/.complete    written last; without it the generation is rubbish
    libraries/<minor>-<hash>/ the same, for what the runner itself imports

The newest complete generation counts. A forced build makes the next one, so runners that use the
old one are not disturbed; it stays until its folder is removed. A number is not used again for a
build after one that broke off, since without a keeper (macOS) a uv
may outlive a killed gateway and still write there.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import shutil
import sys
import sysconfig
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

from filelock import FileLock, Timeout
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from fal_notebook.backends.uv_process import Progress, os_errors_translated, run_uv
from fal_notebook.exceptions import BuildError
from fal_notebook.local_requirements import fingerprints, folders

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # the same library under its older name

__all__ = ["RUNNER_LIBRARIES", "EnvironmentSpec", "Progress", "ensure", "ensure_runner_libraries"]

RUNNER_LIBRARIES = (
    "cloudpickle>=3.0",
    "filelock>=3.13",
    "httptools>=0.6",
    "httpx>=0.27",
    "msgpack>=1.0",
    "packaging>=23",
    "platformdirs>=4",
    "psutil>=5.9",
    "pydantic>=2.7",
    "starlette>=0.40",
    "tomli>=2; python_version < '3.11'",
    "uvicorn>=0.30",
    "uvloop>=0.19; sys_platform != 'win32'",
    "websockets>=13",
)
"""What the runner imports besides the user's own packages; they bring what they need."""

MARKER = ".complete"
LOCK = ".lock"


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
        parts: list[object] = [self.python_version, _implementation(self.interpreter)]
        local = fingerprints(self.requirements)
        return _hashed(*parts, self.layers(), *([local] if local else []))

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
            await _install(folder, number, layer, arguments, progress)
        _check_pydantic(folder)

    place = _Place(root / "envs" / spec.key(), "bin/python", asdict(spec))
    return await _ensure(place, build, progress, force) / "bin" / "python"


async def ensure_runner_libraries(
    root: Path, interpreter: str, python_minor: str, progress: Progress
) -> Path:
    """Return the folder with the runner's own dependencies for one Python minor.

    Parameters
    ----------
    root : Path
        The state folder.
    interpreter : str
        A Python executable of that minor.
    python_minor : str
        Such as "3.11".
    progress : callable
        As for `ensure`.

    Returns
    -------
    Path
        Belongs at the end of ``sys.path``, so that the user's own pins win.

    Raises
    ------
    BuildError
        With uv's reason.
    """
    name = f"{python_minor}-{_hashed(_implementation(interpreter), RUNNER_LIBRARIES)[:8]}"

    async def build(folder: Path) -> None:
        arguments = ["--python", interpreter, "--target", str(folder), "--compile-bytecode"]
        await _install(folder, 1, RUNNER_LIBRARIES, arguments, progress)

    record = {"interpreter": interpreter, "requirements": RUNNER_LIBRARIES}
    place = _Place(root / "libraries" / name, "pydantic/__init__.py", record)
    return await _ensure(place, build, progress, force=False)


# --- generations ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """Where the generations of one environment lie, and how to tell a usable one."""

    folder: Path
    needs: str  # a file that vanishes with the interpreter or an over-eager cleaner
    record: Mapping[str, object]

    def generations(self) -> list[int]:
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdecimal())

    def complete(self, number: int) -> bool:
        return (self.folder / str(number) / MARKER).exists()

    def remove_if_empty(self) -> None:
        """Remove the folder and the lock in it, to be called by who holds that.

        Who waits for the lock opens it anew each time, and no other process builds here.
        """
        if not self.generations():
            with suppress(OSError):
                (self.folder / LOCK).unlink()
                self.folder.rmdir()

    def latest(self) -> Path | None:
        for number in reversed(self.generations()):
            path = self.folder / str(number)
            if self.complete(number) and (path / self.needs).exists():
                return path
        return None


async def _ensure(
    place: _Place, build: Callable[[Path], Awaitable[None]], progress: Progress, force: bool
) -> Path:
    with os_errors_translated(place.folder):
        if not force and (found := place.latest()):
            return found
        for folder in (place.folder.parent, place.folder):
            folder.mkdir(exist_ok=True)  # not the state folder: when it was removed it stays so
        async with _locked(place.folder / LOCK, progress):
            if not force and (found := place.latest()):
                return found
            try:
                return await _build(place, build, progress)
            finally:
                place.remove_if_empty()


async def _build(
    place: _Place, build: Callable[[Path], Awaitable[None]], progress: Progress
) -> Path:
    started = time.monotonic()
    numbers = place.generations()
    for number in numbers:
        if not place.complete(number):
            await _remove(place.folder / str(number))
    folder = place.folder / str(max(numbers, default=0) + 1)
    try:
        await build(folder)
        _mark(folder, place.record, seconds=time.monotonic() - started)
    except BaseException:
        await _remove(folder)
        raise
    progress(f"environment ready after {time.monotonic() - started:.1f} s")
    return folder


async def _remove(folder: Path) -> None:
    """Delete a folder of perhaps tens of thousands of files without holding up the event loop."""
    await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def _mark(folder: Path, record: Mapping[str, object], seconds: float) -> None:
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    content = {
        **record,
        "uv": metadata.version("uv"),
        "time": now,
        "seconds": round(seconds, 2),
    }
    draft = folder / f"{MARKER}.draft"
    draft.write_text(json.dumps(content, indent=1), encoding="utf-8")
    draft.replace(folder / MARKER)


@asynccontextmanager
async def _locked(path: Path, progress: Progress) -> AsyncIterator[None]:
    lock, told = FileLock(path), False
    while True:
        try:
            lock.acquire(blocking=False)
            break
        except Timeout:
            if not told:
                progress("waiting for another build of the same environment")
            told = True
            await asyncio.sleep(0.05)
    try:
        yield
    finally:
        lock.release()


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


async def _install(
    folder: Path, number: int, layer: Sequence[str], arguments: Sequence[str], progress: Progress
) -> None:
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


def _check_pydantic(folder: Path) -> None:
    """Refuse what the runner cannot share a process with: its own copy lies behind the user's."""
    for site in folder.glob("lib/python*/site-packages"):
        for found in metadata.distributions(name="pydantic", path=[str(site)]):
            if Version(found.version).major < 2:
                raise BuildError(
                    f"requirements bring pydantic {found.version}, the runner needs ≥ 2"
                )


def _venv_version(folder: Path) -> str | None:
    text = (folder / "pyvenv.cfg").read_text(encoding="utf-8")
    match = re.search(r"^version_info\s*=\s*(\S+)", text, re.MULTILINE)
    return match and match[1]


# --- names ---------------------------------------------------------------------------------------


def _hashed(*parts: object) -> str:
    text = json.dumps([sysconfig.get_platform(), *parts])
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _implementation(interpreter: str) -> str:
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
