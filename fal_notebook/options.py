"""Options as others use them: parsed, split, listed; each refusal is one sentence.

The models are in `option_model`, the kinds of values in `option_types`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from fal_notebook.exceptions import OptionError
from fal_notebook.option_errors import ALIASES, refusals, unknown_option
from fal_notebook.option_help import OptionHelp, describe, render
from fal_notebook.option_model import CellOptions, Options
from fal_notebook.option_types import (
    HealthCheck,
    RetryCondition,
    RetryConfig,
    absolute_requirement,
    app_name,
)

__all__ = [
    "APP_DEFAULTS",
    "SCALING",
    "CellOptions",
    "HealthCheck",
    "OptionHelp",
    "Options",
    "RetryCondition",
    "RetryConfig",
    "app_name",
    "explicit",
    "help_text",
    "option_help",
    "parse_options",
    "parse_scaling",
    "split_options",
    "with_absolute_paths",
]

_FROZEN = "{} cannot be changed while the app runs; set it in the cell and run the cell again"
SCALING: frozenset[str] = frozenset(
    {
        "keep_alive",
        "min_concurrency",
        "max_concurrency",
        "concurrency_buffer",
        "concurrency_buffer_perc",
        "scaling_delay",
        "request_timeout",
        "request_start_timeout",
        "regions",
    }
)
# Where these differ from a function's.
APP_DEFAULTS: dict[str, Any] = {"machine_type": "S", "keep_alive": 60}
_NAMES = frozenset(Options.model_fields) | ALIASES.keys()
_CELL_NAMES = frozenset(CellOptions.model_fields)
_Model = TypeVar("_Model", bound=BaseModel)


def parse_options(values: Mapping[str, Any]) -> Options:
    """Validate the options of an app.

    Raises
    ------
    OptionError
        One sentence that names every option that is unknown, of the wrong type, out of range or
        in contradiction with another.
    """
    sentences = _unknown(values, _NAMES)
    options = _validated(Options, _only(values, _NAMES), sentences)
    return _or_refuse(options, sentences)


def split_options(values: Mapping[str, Any]) -> tuple[Options, CellOptions]:
    """Validate the options of a cell, and part those of the app from those of the deploy.

    Raises
    ------
    OptionError
        As `parse_options` does, about both kinds at once.
    """
    sentences = _unknown(values, _NAMES | _CELL_NAMES)
    options = _validated(Options, _only(values, _NAMES), sentences)
    cell_options = _validated(CellOptions, _only(values, _CELL_NAMES), sentences)
    return _or_refuse(options, sentences), _or_refuse(cell_options, sentences)


def parse_scaling(values: Mapping[str, Any]) -> dict[str, Any]:
    """Validate options that may change while an app runs; return them with their values.

    Raises
    ------
    OptionError
        Also for an option that exists and needs a new revision. A contradiction with an option
        that is not among `values` is for the caller to find, by merging and parsing again.
    """
    sentences = [_FROZEN.format(name) for name in values if is_frozen(name)]
    sentences += _unknown({n: values[n] for n in values if not is_frozen(n)}, SCALING)
    given = _only(values, SCALING)
    options = _or_refuse(_validated(Options, given, sentences), sentences)
    return {name: getattr(options, name) for name in given}


def is_frozen(name: str) -> bool:
    """Say whether this is an option that only a deploy can change."""
    return name in _NAMES | _CELL_NAMES and name not in SCALING


def refuse_frozen(names: Iterable[str]) -> None:
    """Refuse options that only a deploy can change, before their values are read.

    Raises
    ------
    OptionError
    """
    sentences = [_FROZEN.format(name) for name in names if is_frozen(name)]
    if sentences:
        raise OptionError("; ".join(sentences))


def explicit(options: Options) -> dict[str, Any]:
    """Return the options that were given, not left to their defaults, as JSON values.

    `setup_function` and an image's credentials are not among them; `Options(**explicit(options))`
    gives the same options again but for these.
    """
    return options.model_dump(mode="json", exclude_unset=True)


def with_absolute_paths(options: Options, folder: str) -> Options:
    """Return the options with local requirements as absolute paths, `folder` being where `.` is.

    Raises
    ------
    OptionError
        When there is nothing at such a path.
    """
    if options.requirements is None:
        return options
    layers = [
        [absolute_requirement(item, folder) for item in layer]
        if isinstance(layer, list)
        else absolute_requirement(layer, folder)
        for layer in options.requirements
    ]
    return options.model_copy(update={"requirements": layers})


def option_help() -> list[OptionHelp]:
    """Return the help of every option, first those of the app, then those of the cell."""
    return describe((Options, CellOptions))


def help_text(defaults: Mapping[str, Any] | None = None) -> str:
    """Return an aligned listing of every option with default and help; some may be others here."""
    texts = {name: repr(value) for name, value in (defaults or {}).items()}
    return render(replace(o, default=texts.get(o.name, o.default)) for o in option_help())


def _only(values: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in names}


def _unknown(values: Mapping[str, Any], known: Collection[str]) -> list[str]:
    return [unknown_option(name, known) for name in values if name not in known]


def _validated(
    model: type[_Model], values: Mapping[str, Any], sentences: list[str]
) -> _Model | None:
    """Return the model, or None after adding to `sentences` why there is none."""
    try:
        return model(**values)
    except ValidationError as error:
        sentences += refusals(error, model, values)
        return None


def _or_refuse(model: _Model | None, sentences: list[str]) -> _Model:
    if model is None or sentences:
        raise OptionError("; ".join(sentences))
    return model
