"""Images as recipes: a Dockerfile, what lies beside it, a tag by hash; building is left to others.

An app's image has three parts. The first, its environment, depends on base and requirements only,
so apps share it; then comes what the runner needs; the payload is the last, tiny layer.
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

# Where everything of ours lies in an image.
HOME = "/opt/fal"
PAYLOAD = f"{HOME}/payload"
LIBRARIES = f"{HOME}/libraries"
RUNNER = f"{HOME}/runner"
WORKDIR = "/app"
# Every image of ours carries it.
LABEL = "fal-notebook.image"

_PIP = "python3 -m pip install --no-cache-dir --disable-pip-version-check --root-user-action=ignore"


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
        text = json.dumps([self.dockerfile, beside, self.given], sort_keys=True)
        return f"fal-notebook/{self.kind}:{hashlib.sha256(text.encode()).hexdigest()[:24]}"

    def write_context(self, file: IO[bytes]) -> None:
        """Write the build context as a tar archive, the Dockerfile in it."""
        with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as archive:
            for name, item in {"Dockerfile": self.dockerfile.encode(), **self.beside}.items():
                if isinstance(item, Tree):
                    archive.add(item.path, name, filter=_readable)
                else:
                    entry = tarfile.TarInfo(name)
                    entry.size, entry.mode = len(item), 0o644
                    archive.addfile(entry, io.BytesIO(item))


@dataclass(frozen=True)
class UserImage:
    """An image of the user's own, built from the Dockerfile in it.

    Attributes
    ----------
    context : Path, optional
        A tar archive, named by its SHA-256, of the files that the Dockerfile copies.
    bases : str
        What the names of its base images mean now.
    """

    dockerfile: str
    context: Path | None = None
    build_args: Mapping[str, str] = field(default_factory=dict)
    bases: str = ""

    @property
    def tag(self) -> str:
        """Return the name of the image; equal ones give the same."""
        context = self.context.name if self.context else ""
        told = [self.dockerfile, context, dict(self.build_args), self.bases]
        text = json.dumps(told, sort_keys=True)
        return f"fal-notebook/user:{hashlib.sha256(text.encode()).hexdigest()[:24]}"


def environment(
    base: str, base_id: str, requirements: Sequence[Sequence[str]], libraries: Tree, runner: Tree
) -> Recipe:
    """Return the image that apps with the same requirements share.

    Parameters
    ----------
    base, base_id : str
        Name of the image it is made from, and what that name means now.
    requirements : sequence of sequences of str
        Lines for pip, a layer of the image for each sequence.
    libraries, runner : Tree
        What the runner imports, and the runner.
    """
    files = {
        f"requirements-{number}.txt": "".join(f"{line}\n" for line in layer).encode()
        for number, layer in enumerate(requirements, 1)
    }
    lines = [f"FROM {base}", f"LABEL {LABEL}=env", f"WORKDIR {WORKDIR}"]
    for name in files:
        lines += [f"COPY {name} {HOME}/{name}", f"RUN {_PIP} -r {HOME}/{name}"]
    lines += [f"COPY libraries {LIBRARIES}", f"COPY runner {RUNNER}"]
    return Recipe("env", _text(lines), {**files, "libraries": libraries, "runner": runner}, base_id)


def app(environment_tag: str, payload: Tree) -> Recipe:
    """Return the image of a revision: its environment and the payload."""
    lines = [f"FROM {environment_tag}", f"LABEL {LABEL}=app", f"COPY payload {PAYLOAD}"]
    return Recipe("app", _text(lines), {"payload": payload})


def _text(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _readable(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Let every user of the container read it; it is nobody's in particular."""
    entry.mode = entry.mode | (0o555 if entry.isdir() or entry.mode & 0o100 else 0o444)
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry
