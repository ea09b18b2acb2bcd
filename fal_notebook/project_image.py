"""The table ``image`` of an app in a pyproject.toml, as the value of the option `image`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fal_notebook.container import ContainerImage
from fal_notebook.exceptions import OptionError
from fal_notebook.options import parse_options
from fal_notebook.project_table import Table

_SOURCES = ("dockerfile", "image")
_ANY = ("registries", "entrypoint", "cmd")
_WITH_DOCKERFILE = ("build_args", "secrets")


def image_of(table: Table, folder: Path) -> ContainerImage | str:
    """Return the image that a table describes; the Dockerfile is read now.

    Raises
    ------
    OptionError
        One sentence that names file and line.
    """
    table.refuse_unknown((*_SOURCES, *_ANY, *_WITH_DOCKERFILE))
    given = [key for key in _SOURCES if key in table.values]
    if len(given) != 1:
        what = "neither dockerfile nor image" if not given else "both dockerfile and image"
        raise table.error(
            f"{table} has {what}; give the path of a Dockerfile, or a reference", *given[1:]
        )
    _check_text(table, given[0])
    fields = {key: table.values[key] for key in (*_ANY, *_WITH_DOCKERFILE) if key in table.values}
    for key, value in fields.items():
        _check_field(table, key, value)
    return _built(table, folder, fields) if given == ["dockerfile"] else _pulled(table, fields)


def _built(table: Table, folder: Path, fields: dict[str, Any]) -> ContainerImage:
    path = folder / os.path.expanduser(table.values["dockerfile"])
    try:
        return ContainerImage.from_dockerfile(path, context_dir=folder, **fields)
    except OptionError as error:
        raise table.error(_plain(error), "dockerfile") from None


def _pulled(table: Table, fields: dict[str, Any]) -> ContainerImage | str:
    reference = table.values["image"].strip()
    for key in _WITH_DOCKERFILE:
        if key in fields:
            raise table.error(f"{key} is for a Dockerfile, and {table} names an image", key)
    try:
        parse_options({"image": reference})
    except OptionError:
        raise table.error(
            f"image={reference!r} is no reference such as 'my-org/my-server:latest'", "image"
        ) from None
    return ContainerImage(f"FROM {reference}\n", **fields) if fields else str(reference)


def _check_text(table: Table, key: str) -> None:
    value = table.values[key]
    if not isinstance(value, str) or not value.strip():
        raise table.error(f"{key}={value!r} is not allowed: text that is not empty", key)


def _check_field(table: Table, key: str, value: Any) -> None:
    """Refuse a field by itself, with its line and without credentials."""
    try:
        ContainerImage("FROM scratch", **{key: value})
    except OptionError as error:
        raise table.error(_plain(error), key) from None


def _plain(error: OptionError) -> str:
    return str(error).removeprefix("ContainerImage: ")
