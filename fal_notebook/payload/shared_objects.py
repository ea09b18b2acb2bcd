"""Objects that are each process's own, such as its environment: they go by name."""

from __future__ import annotations

import sys
import types
from typing import Any

from pydantic_core import PydanticUndefined

from fal_notebook.payload.references import is_by_value
from fal_notebook.runner import pickles

_OBJECTS: tuple[tuple[Any, ...], ...] = (
    ("os", "environ"),
    ("os", "environb"),
    ("random", "_inst"),
    ("numpy.random.mtrand", "_rand"),
    ("fastapi.datastructures", "_Unset", PydanticUndefined),  # an older FastAPI's own mark
)
_METHODS = (types.MethodType, types.BuiltinMethodType)


def reduced(value: Any) -> Any:
    """Return how such an object is pickled, None for every other one.

    A copy of the environment would show the kernel's to runners, and hide their own; one of a
    generator would give every runner the same numbers; one of FastAPI's mark for what was not given
    would itself be an example in the schema.
    """
    if (made := pickles.reduced(value)) is not None:
        return made
    found = _of_a_module(value) if isinstance(value, _METHODS) else _single(value)
    return (getattr, found) if found is not None else None


def _of_a_module(method: Any) -> tuple[types.ModuleType, str] | None:
    """Return where a module has the method of its own object, as `random.choice`."""
    module = sys.modules.get(type(method.__self__).__module__)
    if module is None or isinstance(method.__self__, types.ModuleType) or is_by_value(module):
        return None
    name = method.__name__
    return (module, name) if getattr(module, name, None) is method else None


def _single(value: Any) -> tuple[Any, ...] | None:
    for name, attribute, *otherwise in _OBJECTS:
        module = sys.modules.get(name)
        if module is not None and getattr(module, attribute, None) is value:
            return module, attribute, *otherwise
    return None
