"""The files that an image's Dockerfile copies, as an archive; what is left out of it."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fal_notebook import dockerfile, file_archive, ignore_rules
from fal_notebook.container import ContainerImage
from fal_notebook.dockerfile import Instruction
from fal_notebook.exceptions import OptionError
from fal_notebook.ignore_rules import IgnoreRules

_WILD = re.compile(r"[*?\[\\]")
_URL = re.compile(r"(https?|ftp)://|git@|.*\.git(#|$)")


@dataclass(frozen=True)
class Source:
    """A path of the context that an instruction takes; an empty one is all of it."""

    path: str
    said: str

    def takes(self, path: str) -> bool:
        """Say whether it is this path, or a folder above it."""
        while path:
            if not self.path or ignore_rules.glob(self.path).fullmatch(path):
                return True
            path = posixpath.dirname(path)
        return not self.path


def pack(image: ContainerImage, folder: str) -> bytes:
    """Return a tar archive of the build context; empty when the Dockerfile copies no files.

    Only what the Dockerfile copies is in it, so that other files may change.

    Parameters
    ----------
    folder : str
        Where a relative `context_dir` begins, and which is the context when none is given.

    Raises
    ------
    OptionError
        When a file that is copied is not there, is left out or cannot be read, or when the whole
        is too large; it names the line, the file or the largest files.
    """
    wanted = sources(image.dockerfile_str, image.build_args)
    root = _root(image, folder)
    if not wanted:
        return b""
    rules = IgnoreRules(_patterns(image, root, folder))
    try:
        wanted = [_followed(source, root) for source in wanted]
        paths = sorted(set(_found(root, rules, wanted)))
        _refuse_missing(wanted, paths, root, rules)
        files = {path: root / path for path in paths}
        _refuse_too_large(root, files)
        return file_archive.archive(files)
    except OSError as error:
        raise OptionError(f"the build context {root} cannot be read: {error}") from None


def sources(text: str, build_args: Mapping[str, str]) -> list[Source]:
    """Return what the instructions of a Dockerfile take from the context.

    Raises
    ------
    OptionError
        When one lies above the context.
    """
    read = dockerfile.instructions(text)
    known, found = dict[str, str](), list[Source]()
    for instruction in read:
        known |= dockerfile.argument(instruction, build_args, known)
        for path in _taken(instruction):
            found.append(_source(path, instruction, known))
    return found


def _taken(instruction: Instruction) -> Iterator[str]:
    if instruction.name in ("COPY", "ADD") and instruction.flag("from") is None:
        for word in instruction.words()[:-1]:
            if not word.startswith("<<") and not (instruction.name == "ADD" and _URL.match(word)):
                yield word
    for mount in dockerfile.mounts(instruction):
        if mount.get("type", "bind") == "bind" and not mount.get("from"):
            yield mount.get("source", mount.get("src", "/"))


def _source(path: str, instruction: Instruction, known: Mapping[str, str]) -> Source:
    said = f"{instruction.name} {path} (line {instruction.line} of the Dockerfile)"
    unknown = {name for name in re.findall(r"\$\{?(\w+)", path) if name not in known}
    if unknown:  # the base image says what they are
        return Source("", said)
    found = posixpath.normpath(dockerfile.replaced(path, known).lstrip("/") or ".")
    if found == ".." or found.startswith("../"):
        raise OptionError(
            f"{said} lies above the build context; copy from inside of it, or set context_dir"
        )
    return Source("" if found == "." else found, said)


def _root(image: ContainerImage, folder: str) -> Path:
    root = Path(folder, os.path.expanduser(image.context_dir or "."))
    if not root.is_dir():
        raise OptionError(f"context_dir is {root}, which is no folder")
    return root


def _patterns(image: ContainerImage, root: Path, folder: str) -> Iterable[str]:
    """Return the rules that are given first: as a list, a path, the context's own file."""
    if image.dockerignore is not None:
        return image.dockerignore
    given = image.dockerignore_path
    path = Path(folder, os.path.expanduser(given)) if given else root / ".dockerignore"
    try:
        return ignore_rules.read_patterns(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if given:
            raise OptionError(f"dockerignore_path names {path}, which is not there") from error
        return ignore_rules.DEFAULTS
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"{path} cannot be read: {error}") from None


def _followed(source: Source, root: Path) -> Source:
    """Return a source that is all of the context where a link lies on its way."""
    way = Path(root)
    for name in source.path.split("/"):
        way /= name
        if _WILD.search(name):
            break
        if way.is_symlink():
            return Source("", source.said)
    return source


def _found(root: Path, rules: IgnoreRules, wanted: Iterable[Source]) -> Iterator[str]:
    """Yield the paths to pack, and the folders that lead there."""
    for source in wanted:
        steps = source.path.split("/") if source.path else []
        plain = next((n for n, step in enumerate(steps) if _WILD.search(step)), len(steps) - 1)
        begin = "/".join(steps[: max(plain, 0)])
        for path in _walk(root, begin, rules):
            if source.takes(path):
                yield path
                while path := posixpath.dirname(path):
                    yield path


def _walk(root: Path, folder: str, rules: IgnoreRules) -> Iterator[str]:
    if not (root / folder).is_dir():
        return
    with os.scandir(root / folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        path = posixpath.join(folder, entry.name)
        left_out = rules.leaves_out(path)
        if not left_out and _travels(entry):
            yield path
        if entry.is_dir(follow_symlinks=False) and (not left_out or rules.may_hold(path)):
            yield from _walk(root, path, rules)


def _travels(entry: os.DirEntry[str]) -> bool:
    """Whether it is a file, a folder or a link, and no pipe or socket."""
    return entry.is_symlink() or entry.is_file() or entry.is_dir()


def _refuse_missing(
    wanted: Iterable[Source], paths: list[str], root: Path, rules: IgnoreRules
) -> None:
    for source in wanted:
        if source.path and not any(map(source.takes, paths)):
            why = f"which is not in {root}"
            if (root / source.path).exists():
                left_out = rules.leaves_out(source.path)
                why = "which the ignore rules leave out" if left_out else "a pipe or a socket"
            raise OptionError(f"{source.said} takes {source.path}, {why}")


def _refuse_too_large(root: Path, files: Mapping[str, Path]) -> None:
    if excess := file_archive.too_large(files):
        raise OptionError(
            f"the build context {root} has {excess}; leave files out with dockerignore=[…]"
        )
