"""Apps of a pyproject.toml: where the file is, and which apps its ``[tool.fal.apps]`` has.

What an app's table may say is `project_keys`; deploying it is left to others.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from fal_notebook.exceptions import OptionError
from fal_notebook.project_keys import KEYS, ProjectApp, read_app
from fal_notebook.project_table import Table
from fal_notebook.toml_text import TomlText, parse

FILE = "pyproject.toml"
_APPS = ("tool", "fal", "apps")


@dataclass(frozen=True)
class Project:
    """The apps that a text describes.

    Attributes
    ----------
    text : TomlText
    folder : Path
        Where relative paths begin.
    identity : str
        Who owns what is deployed; "" for the notebook.
    """

    text: TomlText
    folder: Path
    identity: str = ""

    @property
    def names(self) -> list[str]:
        """The names of the apps, in their order."""
        return list(self._tables())

    def app(self, name: str) -> ProjectApp:
        """Return an app, checked; ``_`` may stand for ``-``.

        Raises
        ------
        OptionError
            When there is none of that name, or its table is wrong; names file and line.
        """
        tables = self._tables()
        known = {key.replace("_", "-"): key for key in tables}
        key = name if name in tables else known.get(name.replace("_", "-"))
        if key is None:
            raise OptionError(f"{self.text.label} has no app {name!r}; {_instead(name, tables)}")
        table = Table(self.text, (*_APPS, key), tables[key])
        return read_app(key, table, self.folder, self.identity)

    def _tables(self) -> dict[str, Any]:
        values: Any = self.text.values
        for depth, part in enumerate(_APPS):
            path = _APPS[: depth + 1]
            if part not in values:
                raise OptionError(self._without(path, values))
            values = values[part]
            if not isinstance(values, dict):
                raise OptionError(f"{self.text.where(path)}: {'.'.join(path)} is to be a table")
        if not values:
            raise OptionError(self._without((*_APPS, "NAME"), values))
        self._refuse_others()
        return dict(values)

    def _refuse_others(self) -> None:
        """Refuse what stands beside the apps: fal itself would pass over it without a word."""
        table = Table(self.text, _APPS[:-1], self.text.values["tool"]["fal"])
        for key in table.values:
            if key != _APPS[-1]:
                raise table.error(f"{table} has the unknown key '{key}'; {_meant(key)}", key)

    def _without(self, path: tuple[str, ...], values: Mapping[str, Any]) -> str:
        near = get_close_matches(path[-1], values, n=1) if path == _APPS else []
        where = self.text.where((*path[:-1], *near)) if near else self.text.label
        meant = f"; [tool.fal.{near[0]}] is to be [tool.fal.apps.NAME]" if near else ""
        return f"{where}: there is no app: no table [tool.fal.apps.NAME]{meant}"


def is_app_name(target: str) -> bool:
    """Say whether what is to be deployed is the name of an app, not a file."""
    return "::" not in target and not target.endswith(".py") and os.sep not in target


def find(given: str = "") -> Path:
    """Return the path of the pyproject.toml.

    Parameters
    ----------
    given : str
        The file or its folder; "" looks for the nearest one with a table ``[tool.fal]``, from the
        working folder upwards, to that of a Git repository.

    Raises
    ------
    OptionError
        When there is none.
    """
    if given:
        return _given(Path(os.path.expanduser(given)).resolve())
    start = Path.cwd()
    for folder in (start, *start.parents):
        if (folder / FILE).is_file() and _is_about_fal(folder / FILE):
            return folder / FILE
        if (folder / ".git").exists():
            break
    raise OptionError(
        f"no {FILE} with [tool.fal.apps.NAME] was found in {start} or above; "
        "say where it is with pyproject=PATH, or name a Python file: FILE.py"
    )


def read(path: Path) -> Project:
    """Read a pyproject.toml; its apps are checked when they are asked for.

    Raises
    ------
    OptionError
        When it cannot be read, or is no TOML.
    """
    return Project(_parsed(path), path.parent, f"project {path}")


def read_cell(text: str, label: str, folder: str) -> Project:
    """Read the text of a cell, which stands below the line of its magic; raises as `read`."""
    return Project(parse(text, label, first_line=2), Path(folder))


def _given(path: Path) -> Path:
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise OptionError(f"pyproject names {path}, where there is no file")
    return path


def _is_about_fal(path: Path) -> bool:
    tool = _parsed(path).values.get("tool")
    return isinstance(tool, dict) and "fal" in tool


def _parsed(path: Path) -> TomlText:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"{path} cannot be read: {error}") from None
    return parse(text, str(path))


def _instead(name: str, names: Mapping[str, Any]) -> str:
    near = get_close_matches(name, names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}"


def _meant(key: str) -> str:
    """Return what was meant by a key beside the apps."""
    near = next(iter(get_close_matches(key, (_APPS[-1], *KEYS), n=1)), "")
    if near == _APPS[-1]:
        return f"did you mean '{near}'?"
    if near:
        return f"{near} is said of an app: under [tool.fal.apps.NAME]"
    return "apps are all that it may have, each as [tool.fal.apps.NAME]"
