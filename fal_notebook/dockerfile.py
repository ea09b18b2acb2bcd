"""Reads Dockerfiles: their instructions, the files and images they name; it builds nothing."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

_ESCAPE = re.compile(r"#\s*escape\s*=\s*(\S)\s*$", re.IGNORECASE)
_DIRECTIVE = re.compile(r"#\s*[A-Za-z]+\s*=")
_COMMENT = re.compile(r"\s*(#|$)")
_FLAG = re.compile(r"--([a-zA-Z-]+)(?:=(\S*))?\s+")
# One word of a shell; only a word of its own begins a heredoc, as BuildKit sees it.
_WORD = re.compile(r"""(?:\\.|'[^']*'|"(?:\\.|[^"\\])*"|\S)+""")
HEREDOC = re.compile(r"""\d*<<(-?)(?:(['"])(\w[\w.+-]*)\2|(\w[\w.+-]*))""")
_WITH_HEREDOCS = frozenset({"RUN", "COPY", "ADD"})
_VARIABLE = re.compile(r"\\(.)|\$(?:\{(\w+)(?::([-+])([^}]*))?\}|(\w+))")


@dataclass(frozen=True)
class Heredoc:
    """A text below an instruction; one that is not `literal` has its variables replaced."""

    name: str
    text: str
    literal: bool


@dataclass(frozen=True)
class Instruction:
    """One instruction with its continuation lines joined.

    Attributes
    ----------
    name : str
        In upper case, such as ``RUN``.
    flags : tuple of (str, str)
        What stands in front of its arguments as ``--name=value``.
    rest : str
        Its arguments.
    line, end : int
        Its first and last line, counted from 1, heredocs included.
    """

    name: str
    flags: tuple[tuple[str, str], ...]
    rest: str
    line: int
    end: int
    heredocs: tuple[Heredoc, ...] = ()

    def flag(self, name: str) -> str | None:
        """Return the value of a flag, None when it is not given."""
        return dict(self.flags).get(name)

    def words(self) -> list[str]:
        """Return the arguments one by one, from a JSON list too."""
        if self.rest.lstrip().startswith("["):
            try:
                found = json.loads(self.rest)
            except ValueError:
                found = None
            if isinstance(found, list) and all(isinstance(word, str) for word in found):
                return found
        try:
            return shlex.split(self.rest)
        except ValueError:  # an open quote: the builder says so better
            return self.rest.split()


def instructions(text: str) -> list[Instruction]:
    """Return the instructions of a Dockerfile; what cannot be read is left for the builder."""
    return list(_read(text))


def _read(text: str) -> Iterator[Instruction]:
    lines, escape = text.splitlines(), _escape_of(text)
    number = 0
    while number < len(lines):
        begin = number
        if _COMMENT.match(lines[number]):
            number += 1
            continue
        parts = list[str]()
        while number < len(lines):
            line = lines[number]
            number += 1
            if parts and _COMMENT.match(line):
                continue
            joined = line.rstrip()
            parts.append(joined.removesuffix(escape))
            if not joined.endswith(escape):
                break
        name, *more = "".join(parts).split(None, 1)
        rest = more[0].rstrip() if more else ""
        heredocs, number = _heredocs(name.upper(), rest, lines, number)
        flags, rest = _flags(rest)
        yield Instruction(name.upper(), flags, rest, begin + 1, number, heredocs)


def _escape_of(text: str) -> str:
    for line in text.splitlines():
        if found := _ESCAPE.match(line):
            return found[1]
        if not _DIRECTIVE.match(line):
            break
    return "\\"


def _heredocs(
    name: str, rest: str, lines: list[str], number: int
) -> tuple[tuple[Heredoc, ...], int]:
    """Return the texts that an instruction begins, and the number of the line after them."""
    found = list[Heredoc]()
    words = map(HEREDOC.fullmatch, _WORD.findall(rest) if name in _WITH_HEREDOCS else ())
    for dash, _, quoted, plain in (word.groups() for word in words if word):
        end, begin = quoted or plain, number
        texts = [line.lstrip("\t") if dash else line for line in lines[begin:]]
        if end not in texts:  # the builder says so
            continue
        length = texts.index(end)
        body = "".join(f"{line}\n" for line in texts[:length])
        found.append(Heredoc(end, body, bool(quoted)))
        number = begin + length + 1
    return tuple(found), number


def _flags(rest: str) -> tuple[tuple[tuple[str, str], ...], str]:
    flags = list[tuple[str, str]]()
    while match := _FLAG.match(rest):
        flags.append((match[1].lower(), match[2] or ""))
        rest = rest[match.end() :]
    return tuple(flags), rest


def replaced(text: str, values: Mapping[str, str]) -> str:
    """Return a text with its variables replaced, as a Dockerfile writes them."""

    def value(found: re.Match[str]) -> str:
        if found[1]:
            return found[1]
        name, mode, other = found[2] or found[5], found[3], found[4]
        known = values.get(name, "")
        if mode == "-":
            return known or other
        return (other if known else "") if mode == "+" else known

    return _VARIABLE.sub(value, text)


def arguments(read: Iterable[Instruction], given: Mapping[str, str]) -> dict[str, str]:
    """Return the build arguments in force above the first FROM."""
    found = dict[str, str]()
    for instruction in read:
        if instruction.name == "FROM":
            break
        found |= argument(instruction, given, found)
    return found


def argument(
    instruction: Instruction, given: Mapping[str, str], known: Mapping[str, str]
) -> dict[str, str]:
    """Return what an ARG or ENV instruction sets, given build arguments and what is known."""
    found = dict[str, str]()
    if instruction.name not in ("ARG", "ENV"):
        return found
    words = instruction.words()
    if instruction.name == "ENV" and words and "=" not in words[0]:
        words = [f"{words[0]}={' '.join(words[1:])}"]
    for word in words:
        name, equals, default = word.partition("=")
        value = replaced(default, {**known, **found}) if equals else known.get(name, "")
        found[name] = given.get(name, value) if instruction.name == "ARG" else value
    return found


def is_reference(text: str) -> bool:
    """Say whether a Dockerfile is nothing but ``FROM`` and a name."""
    found = instructions(text)
    return (
        len(found) == 1
        and not found[0].flags
        and re.fullmatch(r"[^\s$]+", found[0].rest) is not None
    )


def images(instruction: Instruction) -> list[str]:
    """Return the images or stages that an instruction names."""
    if instruction.name == "FROM":
        return instruction.words()[:1]
    copied = [instruction.flag("from") or ""] if instruction.name == "COPY" else []
    return [*copied, *(mount.get("from", "") for mount in mounts(instruction))]


def stage(instruction: Instruction) -> str:
    words = instruction.words() if instruction.name == "FROM" else []
    return words[2].lower() if len(words) == 3 and words[1].upper() == "AS" else ""


def mounts(instruction: Instruction) -> list[dict[str, str]]:
    """Return what the ``--mount`` flags of a RUN instruction say."""
    if instruction.name != "RUN":
        return []
    texts = [value for name, value in instruction.flags if name == "mount"]
    return [dict(_pair(part) for part in text.split(",")) for text in texts]


def _pair(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name.lower(), value


def needs_buildkit(text: str) -> bool:
    """Say whether the classic builder does not know an instruction or flag of a Dockerfile."""
    return any(map(_is_new, instructions(text)))


def _is_new(instruction: Instruction) -> bool:
    known = {"FROM": {"platform"}, "COPY": {"from", "chown"}, "ADD": {"chown"}}
    flags = {name for name, _ in instruction.flags}
    if instruction.heredocs:
        return True
    return instruction.name in {*known, "RUN"} and bool(flags - known.get(instruction.name, set()))
