"""The values that an option may have, as far as they can be listed: from its type or its place."""

from __future__ import annotations

import os
import pkgutil
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from fal_notebook.container import ContainerImage
from fal_notebook.machines import MACHINE_TYPES
from fal_notebook.magics.gateway_names import GatewayNames
from fal_notebook.option_types import reserved
from fal_notebook.options import CellOptions, Options

# Of a cell that starts a server.
LANGUAGES = ("sh", "python", "dockerfile")

_DEFINED = re.compile(r"^(?:async\s+)?def\s+(\w+)", re.MULTILINE)


@dataclass(frozen=True)
class Place:
    """Where the cursor stands.

    Attributes
    ----------
    variables : mapping
        The notebook's own.
    body : str
        The lines of the cell below this one.
    following : str
        The character after the cursor.
    names : GatewayNames
        What the gateway knows.
    """

    variables: Mapping[str, Any]
    body: str
    following: str
    names: GatewayNames


def values_of(key: str, place: Place) -> list[str]:
    """Return the values of an option; none if it has too many or there is no such option."""
    if key in _FOUND:
        return list(dict.fromkeys(_FOUND[key](place)))
    fields = {**Options.model_fields, **CellOptions.model_fields}
    return list(_literals(fields[key].annotation)) if key in fields else []


def _literals(annotation: Any) -> Iterator[str]:
    if annotation is bool:
        yield from ("true", "false")
    elif get_origin(annotation) is Literal:
        yield from map(str, get_args(annotation))
    else:
        for inner in get_args(annotation):
            yield from _literals(inner)


def _functions(place: Place) -> list[str]:
    return [*_defined(place), *_variables(place, _is_function)]


def _defined(place: Place) -> list[str]:
    return _DEFINED.findall(place.body)


def _is_function(value: Any) -> bool:
    return callable(value) and not isinstance(value, type) and not _is_handle(value)


def _is_handle(value: Any) -> bool:
    # Without its module, which takes long to import, there is none.
    module = sys.modules.get("fal_notebook.handle")
    return module is not None and isinstance(value, module.Handle)


def _variables(place: Place, fits: Callable[[Any], bool]) -> list[str]:
    return [name for name, value in place.variables.items() if fits(value)]


def _modules(place: Place) -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules([os.getcwd()]))


_FOUND: dict[str, Callable[[Place], Iterable[str]]] = {
    "lang": lambda place: LANGUAGES,
    "machine_type": lambda place: MACHINE_TYPES,
    "entry": _defined,
    "setup_function": _functions,
    "image": lambda place: _variables(place, lambda value: isinstance(value, ContainerImage)),
    "metadata": lambda place: _variables(place, lambda value: isinstance(value, dict)),
    "allow_secret": lambda place: place.variables,
    "pass_env": lambda place: sorted(name for name in os.environ if not reserved(name)),
    "secrets": lambda place: place.names.secrets(),
    "env": lambda place: place.names.envs(),
    "local_python_modules": _modules,
}
