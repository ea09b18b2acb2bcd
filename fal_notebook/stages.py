"""Leaves out of a Dockerfile the stages that its last one does not need, as BuildKit does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from fal_notebook import dockerfile
from fal_notebook.dockerfile import Instruction


def without_unused(text: str, build_args: Mapping[str, str]) -> str:
    """Return a Dockerfile with empty lines in place of stages on which its last does not depend.

    One whose stages are named by number, or only as it is built, stays as it is.
    """
    read = dockerfile.instructions(text)
    starts = [n for n, instruction in enumerate(read) if instruction.name == "FROM"]
    stages = [read[a:b] for a, b in pairwise([*starts, len(read)])]
    known = dockerfile.arguments(read, build_args)
    named = [_named(stage, known) for stage in stages]
    if any(word.isdecimal() or "$" in word for names in named for word in names):
        return text
    if not stages or any(instruction.name == "ONBUILD" for instruction in read):
        return text
    needed, lines = _needed(stages, named), text.splitlines()
    for number, stage in enumerate(stages):
        if number not in needed:
            begin, end = stage[0].line - 1, stage[-1].end
            lines[begin:end] = [""] * (end - begin)
    return "".join(f"{line}\n" for line in lines)


def _named(stage: Sequence[Instruction], known: Mapping[str, str]) -> set[str]:
    """Return the images or earlier stages that a stage names, in lower case."""
    first, *others = stage
    names = {dockerfile.replaced(name, known) for name in dockerfile.images(first)}
    names |= {name for instruction in others for name in dockerfile.images(instruction)}
    return {name.lower() for name in names}


def _needed(stages: Sequence[Sequence[Instruction]], named: Sequence[set[str]]) -> set[int]:
    """Return the numbers of the last stage and of those before it on which it depends."""
    titles = [dockerfile.stage(stage[0]) for stage in stages]
    needed = {len(stages) - 1}
    for number in range(len(stages) - 1, -1, -1):
        if number in needed:
            needed |= {n for n in range(number) if titles[n] and titles[n] in named[number]}
    return needed
