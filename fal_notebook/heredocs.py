"""Texts inside of Dockerfiles ("heredocs"), rewritten so that every builder knows them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from fal_notebook import dockerfile
from fal_notebook.dockerfile import Heredoc, Instruction

# Where the texts that a COPY takes lie in the build context.
FOLDER = ".fal-notebook-texts"
_SHELL = ["/bin/sh", "-c"]


def rewritten(text: str, build_args: Mapping[str, str]) -> tuple[str, dict[str, bytes]]:
    """Return a Dockerfile without heredocs, and the files that go into its context for them.

    One that only a newer builder can do stays as it is. The numbers of lines stay the same.
    """
    lines, files = text.splitlines(), dict[str, bytes]()
    read, known, shell = dockerfile.instructions(text), dict[str, str](), _SHELL
    for instruction in read:
        known |= dockerfile.argument(instruction, build_args, known)
        if instruction.name in ("FROM", "SHELL"):
            shell = _SHELL if instruction.name == "FROM" else instruction.words()
        if not instruction.heredocs:
            continue
        instead = _instead(instruction, shell, known, files)
        if instead is not None:
            begin, end = instruction.line - 1, instruction.end
            lines[begin:end] = [instead, *[""] * (end - begin - 1)]
    return "".join(f"{line}\n" for line in lines), files


def left(text: str) -> str:
    """Return which instruction of a rewritten Dockerfile has a heredoc still, "" where none has."""
    found = (i for i in dockerfile.instructions(text) if i.heredocs)
    return next((f"{i.name} of line {i.line}" for i in found), "")


def _instead(
    instruction: Instruction, shell: list[str], known: Mapping[str, str], files: dict[str, bytes]
) -> str | None:
    flags = "".join(f"--{name}={value} " for name, value in instruction.flags)
    if instruction.name == "RUN":
        return f"RUN {flags}{json.dumps([*shell, _script(instruction)])}"
    texts = [_text(each, known) for each in instruction.heredocs]
    if None in texts:
        return None
    words = instruction.words()
    for heredoc, content in zip(instruction.heredocs, texts, strict=True):
        path = f"{FOLDER}/{instruction.line}/{heredoc.name}"
        files[path] = (content or "").encode()
        begin = re.compile(rf"\d*<<-?{re.escape(heredoc.name)}")
        words = [path if begin.fullmatch(word) else word for word in words]
    return f"{instruction.name} {flags}{json.dumps(words)}"


def _script(instruction: Instruction) -> str:
    """Return what the shell runs: the text itself, or a command that reads it."""
    first = instruction.heredocs[0]
    alone = dockerfile.HEREDOC.fullmatch(instruction.rest.strip()) is not None
    if alone and first.text.startswith("#!"):
        return f"f=$(mktemp); cat >\"$f\" <<'{first.name}'\n{first.text}{first.name}\n" + (
            'chmod +x "$f" && "$f"; s=$?; rm -f "$f"; exit $s'
        )
    if alone:
        return first.text
    texts = "".join(f"{each.text}{each.name}\n" for each in instruction.heredocs)
    return f"{instruction.rest}\n{texts}"


def _text(heredoc: Heredoc, known: Mapping[str, str]) -> str | None:
    """Return a file's text; None when its variables are known to the builder alone."""
    if heredoc.literal:
        return heredoc.text
    names = set(re.findall(r"(?<!\\)\$\{?(\w+)", heredoc.text))
    return dockerfile.replaced(heredoc.text, known) if names <= known.keys() else None
