"""The images that others are made from: which they are, and a Dockerfile that names them for ever.

Names of images move. What they meant as a revision was built is recorded with it (`backends/base`),
and whatever builds it again builds from that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fal_notebook import dockerfile, settings, stages
from fal_notebook.dockerfile import Instruction
from fal_notebook.exceptions import OptionError, SettingError
from fal_notebook.registries import Reference

# The image that others are made from (setting docker_base).
DEFAULT = "python:{python}-slim"


def bases(image: Any, python: str) -> list[str]:
    """Return the names of all images that a revision's image is made from, or the one that it is.

    What only stages name that the last one does not need is none of them.

    Parameters
    ----------
    image : str or dict, optional
        The option of that name.
    python : str
        The kernel's minor version, such as ``3.11``.

    Raises
    ------
    SettingError
        When the setting ``docker_base`` is needed and names no image.
    """
    if image is None:
        return [default(python)]
    if isinstance(image, str):
        return [image]
    build_args = image.get("build_args") or {}
    text = stages.without_unused(image["dockerfile_str"], build_args)
    return [name for name in of_dockerfile(text, build_args) if "$" not in name]


def default(python: str) -> str:
    """Return the image from which those are made that bring none: the setting ``docker_base``."""
    configured = settings.setting("docker_base", DEFAULT)
    name = configured.replace("{python}", python)
    try:
        Reference.of(name)
    except OptionError:
        raise SettingError(
            f"docker_base is {configured!r}, which is no reference to an image; write docker_base "
            f'= "{DEFAULT}" or another [HOST[:PORT]/]NAME[:TAG], where {{python}} is the '
            "kernel's version, such as 3.11"
        ) from None
    return name


def of_dockerfile(text: str, build_args: Mapping[str, str]) -> list[str]:
    """Return the images that a Dockerfile is made from and copies from, but its own stages."""
    found = _named(text, build_args)
    return list(dict.fromkeys(name for _, names in found for name in names.values()))


def platforms(text: str, build_args: Mapping[str, str]) -> Iterator[tuple[int, str, str]]:
    """Yield line, platform and image of each FROM that says for which platform it is.

    What only the builder knows, such as ``$BUILDPLATFORM``, is left out of the platform.
    """
    text = stages.without_unused(text, build_args)
    known = dockerfile.arguments(dockerfile.instructions(text), build_args)
    for instruction, names in _named(text, build_args):
        said = instruction.flag("platform") if instruction.name == "FROM" else None
        if said:
            platform = dockerfile.replaced(said, known)
            yield from ((instruction.line, platform, name) for name in names.values())


def held(text: str, build_args: Mapping[str, str], instead: Mapping[str, str]) -> str:
    """Return a Dockerfile that names its base images otherwise.

    `instead` has other names by those that `of_dockerfile` returns. An instruction that changes
    is written on its last line before its heredocs, so the numbers of lines stay the same.
    """
    lines = text.splitlines()
    for instruction, names in _named(text, build_args):
        other = {word: instead[name] for word, name in names.items() if name in instead}
        if other:
            begin, end = instruction.line - 1, instruction.end - _lines_of_heredocs(instruction)
            lines[begin:end] = [*[""] * (end - begin - 1), _renamed(instruction, other)]
    return "".join(f"{line}\n" for line in lines)


def _named(
    text: str, build_args: Mapping[str, str]
) -> Iterator[tuple[Instruction, dict[str, str]]]:
    """Yield each instruction with the images it names: their names by what is written there."""
    read = dockerfile.instructions(text)
    known, own = dockerfile.arguments(read, build_args), {"scratch"}
    for instruction in read:
        words = dockerfile.images(instruction)
        names = {word: dockerfile.replaced(word, known) for word in words}
        external = {w: n for w, n in names.items() if n and not n.isdecimal()}
        yield instruction, {w: n for w, n in external.items() if n.lower() not in own}
        own.add(dockerfile.stage(instruction))


def _lines_of_heredocs(instruction: Instruction) -> int:
    return sum(heredoc.text.count("\n") + 1 for heredoc in instruction.heredocs)


def _renamed(instruction: Instruction, other: Mapping[str, str]) -> str:
    """Return an instruction as one line that names images otherwise."""
    flags = [_flag(name, value, other) for name, value in instruction.flags]
    if instruction.name != "FROM":
        return " ".join([instruction.name, *flags, instruction.rest])
    first, *more = instruction.words()
    return " ".join(["FROM", *flags, other.get(first, first), *more])


def _flag(name: str, value: str, other: Mapping[str, str]) -> str:
    if name == "from":
        value = other.get(value, value)
    if name == "mount":
        pairs = (part.partition("=") for part in value.split(","))
        named = ((k, e, other.get(v, v) if k.lower() == "from" else v) for k, e, v in pairs)
        value = ",".join(map("".join, named))
    return f"--{name}={value}" if value else f"--{name}"
