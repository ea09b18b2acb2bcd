"""Runs uv: its lines as they come, its reason when it fails, no trace when cancelled."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import uv

from fal_notebook.backends import programs
from fal_notebook.backends.details import Detail
from fal_notebook.exceptions import BuildError

Progress = Callable[[str], None]

# What another interpreter or project means for uv must not reach the environments made here;
# index, proxy, CA and cache settings must.
_DROPPED = re.compile(
    r"VIRTUAL_ENV|CONDA_|PYTHON|__PYVENV|FAL_"
    r"|UV_(PYTHON|SYSTEM_PYTHON|PROJECT|WORKING_DIR|VENV|BREAK_SYSTEM|PREFIX|TARGET|QUIET|VERBOSE)"
)
_INDEXES = {"PIP_INDEX_URL": "UV_DEFAULT_INDEX", "PIP_EXTRA_INDEX_URL": "UV_INDEX"}

_FIRST = re.compile(r"^\s*(error:|×)")
_CLAUSE = re.compile(r"^\s*(error:|×|cause:|Caused by:|[╰├]─▶|hint:)\s*")
_FRAME = re.compile(r"^[\s│]+")
_OUTPUT = re.compile(r"^\s*(\[std(out|err)\]|---.*std(out|err).*)$")
_OUTPUT_SHOWN = 12

_OS_ERROR = re.compile(r"\(os error (\d+)\)")
_OS_ERRORS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EACCES: "permission is denied",
    errno.EPERM: "permission is denied",
    errno.EROFS: "the file system is read-only",
}


async def run_uv(arguments: Sequence[str], cwd: Path, what: str, progress: Progress) -> None:
    """Run uv to its end; when this is cancelled, uv is killed with all its children.

    Parameters
    ----------
    arguments : sequence of str
        What follows ``uv`` on its command line.
    cwd : Path
    what : str
        The step in words, for messages: "installing six".
    progress : callable
        Gets the step, and each line that uv prints as its `Detail`.

    Raises
    ------
    BuildError
        With uv's reason.
    """
    said: list[str] = []

    def told(line: str) -> None:
        said.append(line)
        progress(Detail(line))

    progress(what)
    status = await programs.run([_program(), *arguments], cwd, uv_environment(os.environ), told)
    if status:
        raise BuildError(f"{what} failed: {programs.killed(status) or reason(said)}")


def _program() -> str:
    try:
        return uv.find_uv_bin()
    except FileNotFoundError as error:
        raise BuildError("the uv program is missing; `pip install uv` brings it back") from error


def uv_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables for uv: the given ones, without what would mislead it.

    uv reads none of pip's settings; pip's index is handed on unless uv has one of its own.
    """
    kept = {name: value for name, value in environ.items() if not _DROPPED.match(name)}
    if not any(name.startswith(("UV_INDEX", "UV_DEFAULT_INDEX")) for name in kept):
        kept |= {theirs: kept[ours] for ours, theirs in _INDEXES.items() if kept.get(ours)}
    return {**kept, "NO_COLOR": "1", "UV_NO_PROGRESS": "1", "UV_PYTHON_DOWNLOADS": "never"}


def reason(said: Sequence[str]) -> str:
    """Return the essential part of what a failed uv printed.

    One sentence, followed by the last lines of a build backend's output if there is any.
    """
    first = next((n for n, line in enumerate(said) if _FIRST.match(line)), max(0, len(said) - 3))
    lines = said[first:]
    cut = next((n for n, line in enumerate(lines) if _OUTPUT.match(line)), len(lines))
    sentence = ": ".join(_clauses(lines[:cut])) or "uv said nothing"
    output = [_FRAME.sub("", line) for line in lines[cut:] if not _CLAUSE.match(line)]
    text = "\n".join([sentence, *output[-_OUTPUT_SHOWN:]])
    code = _OS_ERROR.search(text)
    known = code and _OS_ERRORS.get(int(code[1]))
    return f"{known}; {text}" if known else text


def _clauses(lines: Sequence[str]) -> list[str]:
    """Undo uv's wrapping: a list of causes, each on one line."""
    clauses: list[str] = []
    for line in lines:
        text = _FRAME.sub("", _CLAUSE.sub("", line))
        if _CLAUSE.match(line) or not clauses:
            clauses.append(text.rstrip(":"))
        elif text.strip("^ "):
            clauses[-1] += f" {text.rstrip(':')}"
    return clauses


@contextmanager
def os_errors_translated(folder: Path) -> Iterator[None]:
    """Raise what the file system has against a folder as a BuildError."""
    try:
        yield
    except OSError as error:
        why = _OS_ERRORS.get(error.errno or 0) or error.strerror or str(error)
        raise BuildError(f"the environment in {folder} cannot be written: {why}") from error
