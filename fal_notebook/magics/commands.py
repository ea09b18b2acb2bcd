"""What fits a word of ``%fal``: commands, their options and what these are about."""

from __future__ import annotations

import click

from fal_notebook import cli
from fal_notebook.magics.candidates import Found, fitting, last_word, option
from fal_notebook.magics.values import Place
from fal_notebook.options import SCALING, option_help


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
    pending, position = _read(command, words)
    if pending is not None:
        choices = pending.type.choices if isinstance(pending.type, click.Choice) else []
        return fitting(word, map(str, choices), "value")
    arguments = [p for p in command.params if isinstance(p, click.Argument)]
    named = dict(enumerate(argument.name for argument in arguments)).get(position)
    if arguments and arguments[-1].nargs == -1 and position >= len(arguments) - 1:
        return option(" ".join(words), word, place, _pairs(path))
    if word.startswith("-"):
        return fitting(word, _flags(command), "option")
    return fitting(word, _names(named or "", path, place), "name")


def _read(command: click.Command, words: list[str]) -> tuple[click.Option | None, int]:
    """Return the option whose value comes next, if any, and how many arguments stand before."""
    options = {text: p for p in command.params if isinstance(p, click.Option) for text in p.opts}
    pending, position = None, 0
    for word in words:
        if pending is not None:
            pending = None
        elif word in options:
            pending = None if options[word].is_flag else options[word]
        elif not word.startswith("-"):
            position += 1
    return pending, position


def _flags(command: click.Command) -> list[str]:
    options = [p for p in command.params if isinstance(p, click.Option)]
    return [text for option in options for text in option.opts if text.startswith("--")]


def _pairs(path: list[str]) -> list[str]:
    known = [item.name for item in option_help()]
    return [name for name in known if name in SCALING] if path == ["scale"] else known


def _names(argument: str, path: list[str], place: Place) -> list[str]:
    """Return the names that an argument of a command may have, told by its own name."""
    if path[0] == "secrets":
        return place.names.secrets()
    known = {"name": place.names.apps, "identity": place.names.keys}
    return known[argument]() if argument in known else []
