"""Images as recipes: a Dockerfile, what lies beside it, a tag by hash; building is left to others.

An app's image has three parts, each an image. The first, its environment, depends on base and
requirements only, so apps share it; then comes the runner, with libraries that go with what is in
the first; the payload is the last, tiny layer.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from fal_notebook import base_images, heredocs, stages
from fal_notebook.exceptions import BuildError

# Where everything of ours lies in an image.
HOME = "/opt/fal"
PAYLOAD = f"{HOME}/payload"
APP_FILES = f"{HOME}/files"
LIBRARIES = f"{HOME}/libraries"
RUNNER = f"{HOME}/runner"
# Packages that were made on this machine.
PACKAGES = f"{HOME}/packages"
WORKDIR = "/app"
# The home of whoever runs in an image without one of the user's own.
USER_HOME = "/home/fal"
# The Dockerfile of a user's own image in its build context.
USER_DOCKERFILE = ".fal-notebook.Dockerfile"
# With what the names of images of ours begin, and a label that each carries.
OURS = "fal-notebook/"
LABEL = "fal-notebook.image"

_PIP = "python3 -m pip install --no-cache-dir --disable-pip-version-check --root-user-action=ignore"
# The engine says who that is when it starts a container; names are asked of these variables.
_ANYONE = [
    f"ENV HOME={USER_HOME} USER=fal LOGNAME=fal",
    f"RUN mkdir -p {USER_HOME} && chmod 1777 {USER_HOME} {WORKDIR}",
]


@dataclass(frozen=True)
class Tree:
    """A folder or file of this machine, whose key says what is in it."""

    path: Path
    key: str


@dataclass(frozen=True)
class Recipe:
    """An image that may be built.

    Attributes
    ----------
    kind : str
        ``env`` or ``app``, the last part of the repository's name.
    dockerfile : str
    beside : mapping of str to bytes or Tree
        The build context: names relative to the Dockerfile.
    given : str
        What the Dockerfile names but does not say, such as the id of its base image.
    """

    kind: str
    dockerfile: str
    beside: Mapping[str, bytes | Tree]
    given: str = ""

    @property
    def tag(self) -> str:
        """Return the name of the image; equal recipes give the same."""
        beside = {
            name: item.key if isinstance(item, Tree) else hashlib.sha256(item).hexdigest()
            for name, item in self.beside.items()
        }
        return _tag(self.kind, [self.dockerfile, beside, self.given])

    @property
    def query(self) -> dict[str, str]:
        """What the engine is told beside the context."""
        return {}

    def write_context(self, file: IO[bytes]) -> None:
        """Write the build context as a tar archive, the Dockerfile in it."""
        with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as archive:
            for name, item in {"Dockerfile": self.dockerfile.encode(), **self.beside}.items():
                if isinstance(item, Tree):
                    archive.add(item.path, name, filter=_readable)
                else:
                    _add(archive, name, item)


@dataclass(frozen=True)
class UserImage:
    """An image of the user's own, built from the Dockerfile in it.

    Attributes
    ----------
    context : Path, optional
        A tar archive, named by its SHA-256, of the files that the Dockerfile copies.
    bases : mapping of str to str
        By the names of its base images, those under which they are the same for ever.
    """

    dockerfile: str
    context: Path | None = None
    build_args: Mapping[str, str] = field(default_factory=dict)
    bases: Mapping[str, str] = field(default_factory=dict)

    @property
    def tag(self) -> str:
        """Return the name of the image; equal ones give the same."""
        context, bases = self.context.name if self.context else "", [*self.bases.values()]
        return _tag("user", [self.dockerfile, context, dict(self.build_args), bases])

    @property
    def query(self) -> dict[str, str]:
        """What the engine is told beside the context."""
        told = {"dockerfile": USER_DOCKERFILE, "labels": json.dumps({LABEL: "user"})}
        return {**told, "buildargs": json.dumps(dict(self.build_args))}

    @property
    def rewritten(self) -> tuple[str, dict[str, bytes]]:
        """The Dockerfile as every builder knows it, and the files that it needs for that."""
        needed = stages.without_unused(self.dockerfile, self.build_args)
        held = base_images.held(needed, self.build_args, self.bases)
        return heredocs.rewritten(held, self.build_args)

    def write_context(self, file: IO[bytes]) -> None:
        """Write the context as a tar archive; no COPY takes the two files that are ours in it."""
        dockerfile, texts = self.rewritten
        ours = {
            USER_DOCKERFILE: dockerfile.encode(),
            ".dockerignore": f"{USER_DOCKERFILE}\n.dockerignore\n".encode(),
        }
        with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as archive:
            if self.context is not None:
                _copy(self.context, archive)
            for name, content in {**texts, **ours}.items():
                _add(archive, name, content)

    def write_folder(self, folder: Path) -> None:
        """Write the context as a folder, without the Dockerfile."""
        if self.context is not None:
            with tarfile.open(self.context) as archive:
                archive.extraction_filter = lambda entry, path: entry  # modes stay as they are
                archive.extractall(folder, members=map(_inside, archive))
        for name, content in self.rewritten[1].items():
            _write(folder, name, content)


@dataclass(frozen=True)
class Layer:
    """Lines for pip, and the packages of `PACKAGES` that they name."""

    lines: tuple[str, ...]
    packages: Mapping[str, Tree] = field(default_factory=dict)


def environment(
    base: str,
    base_id: str,
    requirements: Sequence[Layer],
    for_anyone: bool = False,
    workdir: str = WORKDIR,
) -> Recipe:
    """Return the image that apps with the same requirements share.

    Parameters
    ----------
    base, base_id : str
        Name of the image it is made from, and what that name means now.
    requirements : sequence of Layer
        Each is a layer of the image.
    for_anyone : bool
        Whether every user may write to home and working folder.
    workdir : str
        The working folder; empty for that of the base.
    """
    files: dict[str, bytes | Tree] = {}
    lines = [f"FROM {base}", f"LABEL {LABEL}=env"]
    lines += [f"WORKDIR {workdir}"] if workdir else []
    lines += _ANYONE if for_anyone else []
    for number, layer in enumerate(requirements, 1):
        name, packages = f"requirements-{number}.txt", f"packages-{number}"
        files[name] = _text(layer.lines).encode()
        files |= {f"{packages}/{file}": tree for file, tree in layer.packages.items()}
        lines += [f"COPY {packages} {PACKAGES}"] if layer.packages else []
        lines += [f"COPY {name} {HOME}/{name}", f"RUN {_PIP} -r {HOME}/{name}"]
    return Recipe("env", _text(lines), files, base_id)


def served(base: str, base_id: str, libraries: Tree, runner: Tree) -> Recipe:
    """Return the image in which a runner can run: what it imports, and itself, on an environment.

    Parameters
    ----------
    base, base_id : str
        Name of the image of the environment, and what that name means now.
    libraries, runner : Tree
        What the runner imports, and the runner.
    """
    lines = [f"FROM {base}", f"LABEL {LABEL}=env"]
    lines += [f"COPY libraries {LIBRARIES}", f"COPY runner {RUNNER}"]
    return Recipe("env", _text(lines), {"libraries": libraries, "runner": runner}, base_id)


def app(served_tag: str, payload: Tree, files: Tree | None = None) -> Recipe:
    """Return the image of a revision: what serves it, the archive of its files, the payload."""
    lines = [f"FROM {served_tag}", f"LABEL {LABEL}=app", f"COPY payload {PAYLOAD}"]
    if files is None:
        return Recipe("app", _text(lines), {"payload": payload})
    lines.insert(2, f"COPY files {APP_FILES}")  # they change less often than the code
    return Recipe("app", _text(lines), {"files": files, "payload": payload})


def base_name(identity: str) -> str:
    """Return our name of an image of which the engine has nothing but an id, ``sha256:…``."""
    return f"{OURS}base:{identity.removeprefix('sha256:')[:24]}"


def is_ours(name: str) -> bool:
    """Say whether an image has its name from us."""
    return name.startswith(OURS)


def _tag(kind: str, parts: object) -> str:
    text = json.dumps(parts, sort_keys=True)
    return f"{OURS}{kind}:{hashlib.sha256(text.encode()).hexdigest()[:24]}"


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = len(content), 0o644, 499_162_500
    archive.addfile(entry, io.BytesIO(content))


def _write(folder: Path, name: str, content: bytes) -> None:
    """Write a file that every user of the container may read, whatever the umask."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(0o644)
    for above in path.parents[: name.count("/")]:
        above.chmod(0o755)


def _copy(context: Path, archive: tarfile.TarFile) -> None:
    with tarfile.open(context) as files:
        for entry in files:
            if entry.name not in (USER_DOCKERFILE, ".dockerignore"):
                archive.addfile(entry, files.extractfile(entry) if entry.isreg() else None)


def _inside(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Refuse what would be written elsewhere."""
    if entry.name.startswith("/") or ".." in entry.name.split("/"):
        raise BuildError(f"the build context holds {entry.name}, which lies outside of it")
    return entry


def _text(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _readable(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Let every user of the container read it; it is nobody's in particular."""
    entry.mode = entry.mode | (0o555 if entry.isdir() or entry.mode & 0o100 else 0o444)
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry
