"""What a table ``[tool.fal.apps.NAME]`` may say: fal's keys, each refused with its line."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fal_notebook.exceptions import OptionError
from fal_notebook.option_errors import refusals
from fal_notebook.option_model import Options
from fal_notebook.option_types import absolute_requirement
from fal_notebook.options import parse_options
from fal_notebook.project_image import image_of
from fal_notebook.project_table import Table

# The keys that are options; the rest of the options is said in code.
_OPTIONS = """
    name auth team deployment_strategy app_scale_settings requirements python_version
    machine_type num_gpus regions keep_alive min_concurrency max_concurrency max_multiplexing
    concurrency_buffer concurrency_buffer_perc scaling_delay request_timeout
    request_start_timeout startup_timeout exposed_port metrics_port private_logs secrets
    data_mounts app_files app_files_ignore app_files_context_dir skip_retry_conditions
    retry_config termination_grace_period_seconds health_check
"""
OPTIONS = frozenset(_OPTIONS.split())
# The keys that are none, and the type of each.
_OTHERS: dict[str, tuple[type, str]] = {
    "ref": (str, "text such as 'app.py::MyApp'"),
    "python_entry_point": (str, "text such as 'my_package.app:MyApp'"),
    "image": (dict, "a table with dockerfile or image"),
    "requirements_context_dir": (str, "a path"),
    "no_scale": (bool, "true or false"),
    "_scheduler": (str, "text"),
    "_scheduler_options": (dict, "a table"),
}
KEYS = OPTIONS | _OTHERS.keys()
_IGNORED = ("_scheduler", "_scheduler_options")


@dataclass(frozen=True)
class ProjectApp:
    """An app of a pyproject.toml.

    Attributes
    ----------
    name : str
        That of its table.
    label : str
        Where it is said what it is: `ref`, `python_entry_point` or, without code, its table.
    folder : Path
        That of the file.
    identity : str
        Who owns it; "" for the notebook.
    ref, entry_point : str
        ``path::symbol`` and ``module:symbol``; one of them or, of what is only an image, none.
    options : dict
        Options as of a cell, paths in them absolute.
    notices : tuple of str
    """

    name: str
    label: str
    folder: Path
    identity: str
    ref: str = ""
    entry_point: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    notices: tuple[str, ...] = ()


def read_app(name: str, table: Table, folder: Path, identity: str) -> ProjectApp:
    """Check an app's table.

    Raises
    ------
    OptionError
        One sentence that names file and line, about the first mistake.
    """
    table.refuse_unknown(KEYS)
    _check_types(table)
    options = _options(name, table, folder)
    _check_what_it_is(table, options)
    return ProjectApp(
        name,
        table.where(*_code_keys(table)),
        folder,
        identity,
        table.values.get("ref", ""),
        table.values.get("python_entry_point", ""),
        options,
        tuple(_notices(table)),
    )


def _check_types(table: Table) -> None:
    for key, (kind, allowed) in _OTHERS.items():
        value = table.values.get(key)
        if key in table.values and (not isinstance(value, kind) or value == ""):
            shown = "" if isinstance(value, dict) else f"={value!r}"
            raise table.error(f"{key}{shown} is not allowed: {allowed}", key)


def _options(name: str, table: Table, folder: Path) -> dict[str, Any]:
    values = {"name": name, **{key: table.values[key] for key in table.values if key in OPTIONS}}
    if "requirements" in values:
        values["requirements"] = _requirements(table, folder)
    if values.get("app_files") and isinstance(values.get("app_files_context_dir", ""), str):
        context = values.get("app_files_context_dir", "")
        values["app_files_context_dir"] = str(folder / os.path.expanduser(context))
    if "no_scale" in table.values:
        values["app_scale_settings"] = _from_no_scale(table)
    for key, value in values.items():
        _check_option(table, key, value)
    if "image" in table.values:
        values["image"] = image_of(table.sub("image"), folder)
    _check_together(table, values)
    return values


def _check_option(table: Table, key: str, value: Any) -> None:
    """Refuse a value by itself, with the line of what is wrong in it."""
    try:
        Options(**{key: value})
    except ValidationError as error:
        problems = [problem for problem in error.errors() if problem["loc"]]
        if not problems:
            return  # it goes together with another
        deepest = max((problem["loc"] for problem in problems), key=len)
        keys = (str(part) for part in deepest)
        [sentence, *_] = refusals(error, Options, {key: value})
        raise table.error(sentence, *keys) from None


def _check_together(table: Table, values: Mapping[str, Any]) -> None:
    try:
        parse_options(values)
    except OptionError as error:
        named = [key for key in table.values if key in str(error)]
        raise table.error(str(error), *named[:1]) from None


def _requirements(table: Table, folder: Path) -> Any:
    """Return the requirements, those that are folders as absolute paths; errors as of a cell."""
    given = table.values["requirements"]
    context = folder / os.path.expanduser(table.values.get("requirements_context_dir", ""))

    def whole(item: Any) -> Any:
        if isinstance(item, list):
            return [whole(inner) for inner in item]
        return _requirement(item, context) if isinstance(item, str) else item

    try:
        return whole(given)
    except OptionError as error:
        raise table.error(str(error), "requirements") from None


def _requirement(text: str, context: Path) -> str:
    """Take a folder with a project for that, as fal does, also where it is written as a name."""
    path, bracket, extras = text.strip().partition("[")
    found = context / os.path.expanduser(path.strip())
    if path and (found / "pyproject.toml").is_file():
        return f"{os.path.normpath(found)}{bracket}{extras}"
    return absolute_requirement(text.strip(), str(context))


def _from_no_scale(table: Table) -> bool:
    if "app_scale_settings" in table.values:
        raise table.error(
            "no_scale is the old opposite of app_scale_settings; keep that", "no_scale"
        )
    return not table.values["no_scale"]


def _code_keys(table: Table) -> list[str]:
    return [key for key in ("ref", "python_entry_point") if key in table.values]


def _check_what_it_is(table: Table, options: Mapping[str, Any]) -> None:
    code = _code_keys(table)
    if len(code) > 1:
        raise table.error(f"{table} has both ref and python_entry_point; keep one", code[1])
    if not code and "image" not in options:
        raise table.error(f"{table} has neither ref nor python_entry_point nor an image; give one")
    if not code and "exposed_port" not in options:
        raise table.error(
            f"{table} is an image without code, so it needs exposed_port: the port that its server "
            "listens on"
        )
    module, _, symbol = table.values.get("python_entry_point", "x:x").partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), symbol)):
        raise table.error(
            f"python_entry_point={table.values['python_entry_point']!r} is not of the form "
            "module:Symbol",
            "python_entry_point",
        )


def _notices(table: Table) -> list[str]:
    old = "no_scale is fal's old name for the opposite of app_scale_settings; write that"
    return [
        *([old] if "no_scale" in table.values else []),
        *(
            f"{key} is about fal's own machines and ignored"
            for key in _IGNORED
            if key in table.values
        ),
    ]
