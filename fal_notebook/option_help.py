"""The listing of all options, made from the models so that it cannot go out of date."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from textwrap import wrap
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

_WIDTH = 110


@dataclass(frozen=True)
class OptionHelp:
    """One option as it is shown.

    Attributes
    ----------
    name, type, default : str
        As one would write them.
    help : str
        What it means and what is allowed.
    """

    name: str
    type: str
    default: str
    help: str


def describe(models: Iterable[type[BaseModel]]) -> list[OptionHelp]:
    """Return the help of every option of the models, in the order they are written there."""
    return [_help(name, field) for model in models for name, field in model.model_fields.items()]


def render(options: Iterable[OptionHelp]) -> str:
    """Return an aligned listing of ``name=default`` and help."""
    rows = [(f"{item.name}={item.default}", item.help) for item in options]
    margin = max(len(left) for left, _ in rows) + 2
    return "\n".join(line for row in rows for line in _aligned(row, margin))


def _aligned(row: tuple[str, str], margin: int) -> list[str]:
    left, text = row
    parts = wrap(text, _WIDTH - margin, break_on_hyphens=False)
    return [f"{left:<{margin}}{parts[0]}", *(" " * margin + part for part in parts[1:])]


def _help(name: str, field: FieldInfo) -> OptionHelp:
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    kind = _type(field.annotation)
    # What is allowed goes without saying for a switch.
    text = f"{field.description}" if kind == "bool" else f"{field.description}; {extra['allowed']}"
    default = repr(field.get_default(call_default_factory=True))
    return OptionHelp(name, kind, default, text)


def _type(annotation: Any) -> str:
    """Write a type as one would in the documentation; None goes without saying."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(args[0])
    if origin in (Union, types.UnionType):
        members = dict.fromkeys(_type(arg) for arg in args if arg is not type(None))
        return " | ".join(members)
    if origin is Literal:
        return type(args[0]).__name__
    if origin is list:
        return f"list[{_type(args[0])}]"
    if origin is Callable:
        return "callable"
    return str((origin or annotation).__name__)
