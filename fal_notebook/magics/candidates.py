"""What fits a word of ``key=value`` at the end of a magic line; the values are in `values`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from fal_notebook.exceptions import FalNotebookError, OptionError
from fal_notebook.magics.parse import outside
from fal_notebook.magics.values import Place, values_of
from fal_notebook.options import option_help
from fal_notebook.project import Project, read_cell

_ITEM = re.compile(r"[\[(,]\s*")


@dataclass(frozen=True)
class Found:
    """The part of the line that is replaced, by which texts, and what each of these is."""

    fragment: str
    texts: Mapping[str, str]


def fitting(fragment: str, texts: Iterable[str], kind: str) -> Found:
    """Return what of `texts` begins with what is written."""
    return Found(fragment, {text: kind for text in texts if text.startswith(fragment)})


def cell_line(text: str, place: Place) -> Found:
    """Return what fits the end of ``[NAME] key=value …``, NAME being that of an app."""
    return _line(text, place, place.names.apps)


def server_line(text: str, place: Place) -> Found:
    """Return the same with the options that only a server has."""
    return _line(text, place, place.names.apps, ("lang", "cmd", "entrypoint"))


def toml_line(text: str, place: Place) -> Found:
    """Return the same where NAME is that of an app in the cell, which is TOML."""
    return _line(text, place, lambda: names_of(lambda: read_cell(place.body, "", "")))


def names_of(project: Callable[[], Project]) -> list[str]:
    """Return the names of a project's apps, none where it cannot be read."""
    try:
        return project().names
    except (FalNotebookError, OSError):
        return []


def _line(
    text: str, place: Place, names: Callable[[], list[str]], more: Sequence[str] = ()
) -> Found:
    before, word = last_word(text)
    found = option(before, word, place, [*(item.name for item in option_help()), *more])
    if before.strip() or found.fragment != word:
        return found
    return Found(word, {**found.texts, **fitting(word, names(), "name").texts})


def last_word(text: str) -> tuple[str, str]:
    """Cut the word off that is being written; it may hold blanks in quotes and brackets."""
    start = 0
    with suppress(OptionError):  # what is being written is not closed yet
        for index, char in outside(text):
            start = index + 1 if char.isspace() else start
    return text[:start], text[start:]


def option(before: str, word: str, place: Place, names: Iterable[str]) -> Found:
    """Return what fits a word of ``key=value``; no key is offered twice."""
    key, sign, text = word.removeprefix("--").partition("=")
    if sign:
        return _value(key.replace("-", "_"), text, place)
    used = {part.removeprefix("--").partition("=")[0] for part in before.split()}
    return fitting(key, [f"{name}=" for name in names if name not in used], "option")


def _value(key: str, text: str, place: Place) -> Found:
    *items, item = _ITEM.split(text)
    quote = item[:1] if item[:1] in ("'", '"') else ""
    closing = "" if place.following == quote else quote
    given = {other.strip(" '\"") for other in items}
    values = [value + closing for value in values_of(key, place) if value not in given]
    return fitting(item.removeprefix(quote), values, "value")
