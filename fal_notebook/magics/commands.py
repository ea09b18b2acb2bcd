"""What fits a word of ``%fal``: commands, their options and what these are about."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import click

from fal_notebook import cli, project
from fal_notebook.magics.candidates import Found, fitting, last_word, names_of, option
from fal_notebook.magics.values import Place
from fal_notebook.options import SCALING, option_help
from fal_notebook.runner.log_levels import LEVELS


def fal_line(text: str, place: Place) -> Found:
    """Return what fits the end of a line of ``%fal``."""
    before, word = last_word(text)
    words = before.split()
    command: click.Command | None = cli.commands
    path: list[str] = []
    while isinstance(command, click.Group) and words:
        path.append(words.pop(0))
        command = command.commands.get(path[-1])
    if isinstance(command, click.Group):
        return fitting(word, sorted(command.commands), "command")
    if command is None:
        return fitting(word, [], "")
    return _of_command(command, path, words, word, place)


def _of_command(
    command: click.Command, path: list[str], words: list[str], word: str, place: Place
) -> Found:
    pending, given = _read(command, words)
    name, sign, text = word.partition("=")
    if pending is None and sign:
        pending, word = _options(command).get(name), text if name in _options(command) else word
    if pending is not None:
        return fitting(word, _values(pending, given, place), "value")
    arguments = [p for p in command.params if isinstance(p, click.Argument)]
    if arguments and arguments[-1].nargs == -1 and len(given) >= len(arguments) - 1:
        return option(" ".join(words), word, place, _pairs(path))
    if word.startswith("-"):
        return fitting(word, _flags(command), "option")
    asked = arguments[len(given)] if len(given) < len(arguments) else None
    if asked is not None and isinstance(asked.type, click.Choice):
        return fitting(word, list(map(str, asked.type.choices)), "name")
    named = (asked.name if asked is not None else "") or ""
    if named == "target":
        apps = fitting(word, names_of(lambda: project.read(project.find())), "name")
        return Found(word, {**apps.texts, **fitting(word, _programs(word), "path").texts})
    if named == "revision":
        return fitting(word, place.names.revisions(given[0]), "revision")
    return fitting(word, _names(named, path, place), "name")


def _read(command: click.Command, words: list[str]) -> tuple[click.Option | None, list[str]]:
    """Return the option whose value comes next, if any, and the arguments that stand before."""
    options = _options(command)
    pending: click.Option | None = None
    given: list[str] = []
    for word in words:
        if pending is not None:
            pending = None
        elif word in options:
            pending = None if options[word].is_flag else options[word]
        elif not word.startswith("-"):
            given.append(word)
    return pending, given


def _options(command: click.Command) -> dict[str, click.Option]:
    return {text: p for p in command.params if isinstance(p, click.Option) for text in p.opts}


def _values(pending: click.Option, given: Sequence[str], place: Place) -> Iterable[str]:
    """Return the values of an option of a command about the app that is named first."""
    if isinstance(pending.type, click.Choice):
        return map(str, pending.type.choices)
    if pending.name == "level":
        return map(str.lower, LEVELS)
    if pending.name in ("env", "source", "to"):
        return place.names.envs()
    of_app = {"runner": place.names.runners, "request": place.names.failed}
    return of_app[pending.name](given[0]) if given and pending.name in of_app else []


def _flags(command: click.Command) -> list[str]:
    return [text for text in _options(command) if text.startswith("--")]


def _pairs(path: list[str]) -> list[str]:
    known = [item.name for item in option_help()]
    if path == ["scale"]:
        return [name for name in known if name in SCALING]
    return [*known, "pyproject"] if path == ["deploy"] else known


def _programs(word: str) -> list[str]:
    """Return the Python files and folders whose paths begin with a word."""
    folder, slash, _ = word.rpartition("/")
    with contextlib.suppress(OSError):
        found = sorted(Path(os.path.expanduser(folder + slash)).iterdir())
        shown = [path for path in found if not path.name.startswith(".")]
        folders = {path: "/" for path in shown if path.is_dir()}
        return [
            f"{folder}{slash}{path.name}{folders.get(path, '')}"
            for path in shown
            if path in folders or path.suffix == ".py"
        ]
    return []


def _names(argument: str, path: list[str], place: Place) -> list[str]:
    """Return the names that an argument of a command may have, told by its own name."""
    if path[0] == "secrets":
        return place.names.secrets()
    known = {
        "name": place.names.apps,
        "identity": place.names.keys,
        "env": place.names.envs,
    }
    return known[argument]() if argument in known else []
