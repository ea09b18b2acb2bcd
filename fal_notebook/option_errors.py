"""What is said about refused options: one sentence each, with the value and what is allowed."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

ALIASES = {"force_env_build": "force"}

# These may hold credentials, and the sentence may end up in a saved notebook.
_NEVER_SHOWN = frozenset({"image", "registries", "secrets", "build_args"})
_MOST_LISTED = 10  # more than all options that scale
_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 60


def unknown_option(name: str, known: Collection[str]) -> str:
    """Say that there is no such option, and which one was meant."""
    nearest = get_close_matches(name.lower(), known, n=1)
    if nearest:
        return f"unknown option '{name}'; did you mean '{nearest[0]}'?"
    others = " and others" if len(known) > _MOST_LISTED else ""
    return f"unknown option '{name}'; there are {', '.join(sorted(known)[:_MOST_LISTED])}{others}"


def refusals(
    error: ValidationError, model: type[BaseModel], values: Mapping[str, Any]
) -> list[str]:
    """Return one sentence per refused option.

    A union reports each of its members and a list each of its items; the first reason that one of
    our own validators gave is the one that helps, then an unknown field of a nested value, then a
    wrong one, else what is allowed for the option as a whole.
    """
    given = {ALIASES.get(name, name): value for name, value in values.items()}
    reasons: dict[str, str | None] = {}
    for problem in sorted(error.errors(include_url=False), key=_rank):
        name = str(problem["loc"][0]) if problem["loc"] else ""
        reasons[name] = reasons.get(name) or _reason(model, problem)
    return [_refusal(model, name, given, reason) for name, reason in reasons.items()]


def _rank(problem: Any) -> int:
    kinds = ("value_error", "extra_forbidden")
    return kinds.index(problem["type"]) if problem["type"] in kinds else len(kinds)


def _reason(model: type[BaseModel], problem: Any) -> str | None:
    """Return our own validator's reason, a nearest value, or what is wrong inside a nested one."""
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    loc = problem["loc"]
    if problem["type"] == "literal_error" and (meant := _meant(problem)):
        return f"{_allowed(model, str(loc[0]))}; did you mean {meant!r}?"
    holder = _nested_model(model, loc[:-1]) if len(loc) > 1 else None
    if holder is None or loc[0] in _NEVER_SHOWN:
        return None
    return f"{_inside(holder, problem)}; give {_allowed(model, loc[0])}"


def _inside(holder: type[BaseModel], problem: Any) -> str:
    """Say which field of a nested value is unknown, missing or wrong."""
    field, place = str(problem["loc"][-1]), ".".join(map(str, problem["loc"][1:]))
    if problem["type"] == "extra_forbidden":
        nearest = get_close_matches(field, holder.model_fields, n=1)
        meant = f" (did you mean '{nearest[0]}'?)" if nearest else ""
        return f"there is no field '{place}'{meant}"
    if problem["type"] == "missing":
        return f"{place} is missing"
    message = problem["msg"]
    return f"{place}={_short(problem['input'])}, {message[:1].lower()}{message[1:]}"


def _meant(problem: Any) -> str:
    """Return which of the words that are allowed is nearest to the one that was given."""
    words = re.findall(r"'(.*?)'", problem["ctx"]["expected"])
    return next(iter(get_close_matches(str(problem["input"]), words, n=1)), "")


def _nested_model(model: type[BaseModel], path: Sequence[int | str]) -> type[BaseModel] | None:
    """Return the model that lies at `path`, if models lead there."""
    for name in path:
        field = model.model_fields.get(str(name))
        kinds = (field.annotation, *get_args(field.annotation)) if field is not None else ()
        found = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)]
        if not found:
            return None
        model = found[0]
    return model


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
    if name == "image" and not isinstance(value, (str, Mapping)):
        return f", {'an' if type(value).__name__[0] in 'aeiou' else 'a'} {type(value).__name__},"
    if name in _NEVER_SHOWN or (isinstance(value, Mapping) and value):
        return ""
    return f"={_short(value)}"


def _short(value: Any) -> str:
    """Show a value in short; one that holds a key is not shown."""
    text = repr(value) if isinstance(value, (str, list, tuple)) else ""
    with suppress(ImportError):  # in a runner
        from fal_notebook.payload.secret_scan import scan  # heavy, and for errors only

        if scan(text.encode(errors="replace")):
            return "…"
    return " ".join(_repr.repr(value).split())
