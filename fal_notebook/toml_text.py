"""TOML with the lines on which its keys stand, which Python's own reader does not tell."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fal_notebook.exceptions import OptionError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # the same library under its older name

Path = tuple[str, ...]

_PART = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}|\'\'\'.*?\'{3,5}'  # texts of several lines
    r'|"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\''  # texts of one
    r"|#[^\n]*|[\[\]{}\n=]|[^\"'#\[\]{}\n=]+",
    re.DOTALL,
)
_AT = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")


@dataclass(frozen=True)
class TomlText:
    """What a text says, and where.

    Attributes
    ----------
    label : str
        What its reader knows it by, such as the path of its file.
    values : dict
    lines : dict
        The first line of each table and key, by path.
    """

    label: str
    values: dict[str, Any]
    lines: dict[Path, int] = field(default_factory=dict)

    def where(self, path: Sequence[str]) -> str:
        """Return where a path stands, or as much of it as stands somewhere."""
        known = (self.lines.get(tuple(path[:end])) for end in range(len(path), 0, -1))
        line = next(filter(None, known), None)
        return f"{self.label}, line {line}" if line else self.label


def parse(text: str, label: str, first_line: int = 1) -> TomlText:
    """Read TOML.

    Raises
    ------
    OptionError
        When it is none; names the line.
    """
    text = text.replace("\r\n", "\n")
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise OptionError(_no_toml(str(error), text, label, first_line)) from None
    lines: dict[Path, int] = {}
    statements = list(_statements(text, first_line))
    for path, line in statements:
        lines.setdefault(path, line)
    for path, line in statements:  # what has no statement of its own begins with its first part
        for end in range(1, len(path)):
            lines.setdefault(path[:end], line)
    return TomlText(label, values, lines)


def _no_toml(reason: str, text: str, label: str, first_line: int) -> str:
    match = _AT.search(reason)
    last = len(text.rstrip().splitlines()) or 1
    line = int(match[1]) if match and match[1] else last
    what = reason[: match.start()] if match else reason
    return f"{label}, line {line + first_line - 1}: this is no TOML: {what}"


def _statements(text: str, line: int) -> Iterator[tuple[Path, int]]:
    """Yield the path that each statement of a valid text is about, and its line."""
    table: Path = ()
    for words in _split(text):
        code = [word for word in words if not word.startswith("#")]
        written = "".join(code).strip()
        if written.startswith("["):
            table = _key(written.strip("[] \t"))
            yield table, line
        elif written:
            yield table + _key("".join(code[: code.index("=")])), line
        line += "".join(words).count("\n")


def _split(text: str) -> Iterator[list[str]]:
    """Cut a text at the ends of its statements; comments and texts stay whole."""
    depth, words = 0, list[str]()
    for match in _PART.finditer(text):
        word = match[0]
        words.append(word)
        depth += (word in ("[", "{")) - (word in ("]", "}"))
        if word == "\n" and not depth:
            yield words
            words = []
    yield words


def _key(written: str) -> Path:
    """Return the parts of a key as it is written: bare, quoted, dotted."""
    value, parts = tomllib.loads(f"{written} = 0"), list[str]()
    while isinstance(value, dict):
        [(part, value)] = value.items()
        parts.append(part)
    return tuple(parts)
