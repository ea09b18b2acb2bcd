"""A table of a TOML text: what is wrong in it is refused with file, line and the nearest key."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from fal_notebook.exceptions import OptionError
from fal_notebook.option_model import Options
from fal_notebook.toml_text import TomlText


@dataclass(frozen=True)
class Table:
    """A table of a text, and where it stands."""

    text: TomlText
    path: tuple[str, ...]
    values: Any

    def __str__(self) -> str:
        return f"[{'.'.join(self.path)}]"

    def sub(self, key: str) -> Table:
        """Return a table in this one."""
        return Table(self.text, (*self.path, key), self.values[key])

    def where(self, *keys: str) -> str:
        """Return file and line of a key, or of the table."""
        return self.text.where((*self.path, *keys))

    def error(self, sentence: str, *keys: str) -> OptionError:
        """Return the refusal of a key, or of the table, with file and line."""
        return OptionError(f"{self.where(*keys)}: {sentence}")

    def refuse_unknown(self, known: Collection[str]) -> None:
        """Refuse what is no table, and keys that are not known, with the nearest one."""
        if not isinstance(self.values, dict):
            raise self.error(f"{'.'.join(self.path)} is to be a table")
        for key in self.values:
            if key not in known:
                raise self.error(f"{self} has the unknown key '{key}'; {_instead(key, known)}", key)


def _instead(key: str, known: Collection[str]) -> str:
    if key in Options.model_fields:
        return "that option is given in the code: the decorator, the class or the cell"
    near = get_close_matches(key, known, n=1)
    if near:
        return f"did you mean '{near[0]}'?"
    return f"it may have {', '.join(sorted(known)[:10])} and others"
