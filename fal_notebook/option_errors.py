"""What is said about refused options: one sentence each, with the value and what is allowed."""

from __future__ import annotations

import reprlib
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError

ALIASES = {"force_env_build": "force"}

# These may hold credentials, and the sentence may end up in a saved notebook.
_NEVER_SHOWN = frozenset({"image", "registries", "secrets", "build_args"})
_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 60


def unknown_option(name: str, known: Collection[str]) -> str:
    """Say that there is no such option, and which one was meant."""
    nearest = get_close_matches(name, known, n=1)
    if nearest:
        return f"unknown option '{name}'; did you mean '{nearest[0]}'?"
    return f"unknown option '{name}'; there are {', '.join(sorted(known)[:6])} and others"


def refusals(
    error: ValidationError, model: type[BaseModel], values: Mapping[str, Any]
) -> list[str]:
    """Return one sentence per refused option.

    A union reports each of its members and a list each of its items; the first reason that one of
    our own validators gave is the one that helps, else what is allowed for the option as a whole.
    """
    reasons: dict[str, str | None] = {}
    for problem in error.errors(include_url=False, include_input=False):
        name = str(problem["loc"][0]) if problem["loc"] else ""
        own = str(problem["ctx"]["error"]) if problem["type"] == "value_error" else None
        reasons[name] = reasons.get(name) or own
    given = {ALIASES.get(name, name): value for name, value in values.items()}
    return [_refusal(model, name, given, reason) for name, reason in reasons.items()]


def _refusal(
    model: type[BaseModel], name: str, given: Mapping[str, Any], reason: str | None
) -> str:
    if not name:
        return str(reason)
    if reason is None:
        reason = _allowed(model, name)
    return f"{name}{_shown(name, given.get(name))} is not allowed: {reason}"


def _allowed(model: type[BaseModel], name: str) -> str:
    field = model.model_fields.get(name)
    if field is None:
        return unknown_option(name, model.model_fields)
    extra = field.json_schema_extra
    return str(extra["allowed"]) if isinstance(extra, dict) else ""


def _shown(name: str, value: Any) -> str:
    if name in _NEVER_SHOWN or isinstance(value, Mapping):
        return ""
    return "=" + " ".join(_repr.repr(value).split())
