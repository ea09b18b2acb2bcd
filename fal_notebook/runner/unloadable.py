"""Finds what in a payload cannot be loaded: the pickle is read once more, slowly, to that place."""

from __future__ import annotations

import contextlib
import io
import pickle
from types import CodeType, FunctionType
from typing import Any

from fal_notebook.exceptions import PayloadFormatError
from fal_notebook.runner.unpickling import maker

_GLOBALS = "__globals__"  # under this key cloudpickle has the variables of a function


def load_error(error: Exception, content: bytes, begin: int) -> PayloadFormatError | None:
    """Return what to say of an error of loading; None when no variable is found to cause it."""
    name = _failing(content, begin)
    if not name:
        return None
    lacking = "get attribute" in str(error) and isinstance(error, AttributeError)
    remedy = (
        "have requirements name the version of its module that is installed here"
        if lacking
        else "give its class a __reduce__ that fits"
    )
    return PayloadFormatError(
        f"`{name}` was pickled, but cannot be loaded in a runner ({type(error).__name__}: {error});"
        f" {remedy}, or create it in setup_function or inside the function"
    )


class _SlowUnpickler(pickle._Unpickler):
    """Written in Python, so that what it has begun can be looked at."""

    def find_class(self, module: str, name: str) -> Any:
        return maker(module, name) or super().find_class(module, name)


def _failing(content: bytes, begin: int) -> str:
    """Return the variable, else the function, whose parts are loaded when loading fails."""
    buffer = io.BytesIO(content)
    buffer.seek(begin)
    unpickler: Any = _SlowUnpickler(buffer)
    with contextlib.suppress(Exception):
        unpickler.load()
        return ""
    begun: list[list[Any]] = [*unpickler.metastack, unpickler.stack]
    functions = [p for level in begun for p in level if isinstance(p, FunctionType) and _is_own(p)]
    used = {name for function in functions for name in _names(function.__code__)}
    flat = [part for level in begun for part in level]
    keys = [key for key in _variables(flat)[::2] if isinstance(key, str) and key in used]
    return keys[-1] if keys else functions[-1].__name__ if functions else ""


def _is_own(function: FunctionType) -> bool:
    return function.__module__ == "__main__"


def _variables(begun: list[Any]) -> list[Any]:
    """Return what is there of the last function's variables: names and values by turns."""
    places = [i for i, part in enumerate(begun) if isinstance(part, str) and part == _GLOBALS]
    return begun[places[-1] + 2 :] if places else []  # the dict comes first


def _names(code: CodeType) -> set[str]:
    inner = (_names(part) for part in code.co_consts if isinstance(part, CodeType))
    return set(code.co_names).union(*inner)
