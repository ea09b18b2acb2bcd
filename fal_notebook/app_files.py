"""The files that an app takes along, `app_files`, as an archive; what is left out of it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fal_notebook import file_archive
from fal_notebook.exceptions import AppFilesError, OptionError
from fal_notebook.options import Options

# What is left out where nobody says what: of version control, of builds, and what holds keys. A
# notebook changes whenever it is saved.
IGNORED = (
    r"(^|/)(\.git|__pycache__|\.venv|venv|node_modules|\.ipynb_checkpoints)/",
    r"(^|/)(\.env|\.DS_Store)$",
    r"\.(pyc|ipynb)$",
)


@dataclass(frozen=True)
class AppFiles:
    """The names of the files, relative to their folder, and a tar archive of them."""

    names: tuple[str, ...] = ()
    archive: bytes = b""


def pack(options: Options, folder: str) -> AppFiles:
    """Return the files that the options name; nothing when they name none.

    A link to a file is packed as that file. One that leaves the folder is left out.

    Parameters
    ----------
    folder : str
        Where a relative `app_files_context_dir` begins, and where the files are without one.

    Raises
    ------
    AppFilesError
        When what is named is not there, is left out, lies elsewhere or cannot be read, or when
        all is too large.
    """
    if not options.app_files:
        return AppFiles()
    root = _root(options.app_files_context_dir, folder)
    given = options.app_files_ignore
    ignored = [re.compile(pattern) for pattern in (IGNORED if given is None else given)]
    try:
        files = {n: p for path in options.app_files for n, p in _found(root, path, ignored)}
        files = dict(sorted(files.items()))
        if excess := file_archive.too_large(files):
            hint = "leave some out with app_files_ignore=[…], or download them in setup_function"
            raise AppFilesError(f"app_files have {excess}; {hint}", str(root))
        return AppFiles(tuple(files), file_archive.archive(files))
    except OSError as error:
        raise AppFilesError(f"app_files cannot be read: {error}", str(root)) from None


def _root(context: str | None, folder: str) -> Path:
    root = Path(folder, os.path.expanduser(context or ".")).resolve()
    if not root.is_dir():
        raise OptionError(f"app_files_context_dir is {root}, which is no folder")
    return root


def _found(root: Path, given: str, ignored: Sequence[re.Pattern[str]]) -> list[tuple[str, Path]]:
    """Return the files of one path, by their names in `root`."""
    if "\0" in given:
        raise AppFilesError(f"app_files names {given!r}, which no file can be called", given)
    path = Path(os.path.normpath(root / os.path.expanduser(given)))
    if not _inside(root, path):
        lies = "is a link that leaves" if path.is_relative_to(root) else "lies outside of"
        raise AppFilesError(
            f"app_files names {given}, which {lies} {root}; copy it there, or set "
            "app_files_context_dir to a folder above it",
            given,
        )
    if not path.exists():
        raise AppFilesError(
            f"app_files names {given}, which is not in {root}; correct it, or set "
            "app_files_context_dir to the folder that it is in",
            given,
        )
    names = ((found.relative_to(root).as_posix(), found.resolve()) for found in _walk(root, path))
    files = [(n, real) for n, real in names if not any(i.search(n) for i in ignored)]
    if not files:
        raise AppFilesError(
            f"app_files names {given}, of which nothing is copied: it holds no files, or all are "
            "left out; change app_files_ignore",
            given,
        )
    return files


def _walk(root: Path, path: Path) -> Iterator[Path]:
    """Yield the files below a path, which is in `root`; no link to a folder is followed."""
    if not path.is_dir():
        yield path
        return
    for base, folders, files in os.walk(path, onerror=_refuse):
        folders.sort()
        for name in sorted(files):
            file = Path(base, name)
            if file.is_file() and _inside(root, file):
                yield file


def _refuse(error: OSError) -> None:
    raise error


def _inside(root: Path, path: Path) -> bool:
    """Say whether a path is in a folder, and no link on its way leads out of it."""
    return path.is_relative_to(root) and path.resolve().is_relative_to(root)
