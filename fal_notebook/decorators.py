"""`function` and `cached`: functions outside of magics that are apps, or run once per runner."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from fal_notebook.lazy_handle import LazyHandle

F = TypeVar("F", bound=Callable[..., Any])


def function(kind: str | None = None, **options: Any) -> Callable[[F], LazyHandle]:
    """Make a function an app, which is deployed when it is first called, or by `deploy`.

    Parameters
    ----------
    kind : str, optional
        ``virtualenv`` or ``container``.
    **options
        Any option of ``%%fal_function``.

    Raises
    ------
    OptionError
        When the function is decorated, about its options.
    """
    from fal_notebook.exceptions import OptionError
    from fal_notebook.lazy_handle import LazyHandle, LazyServerHandle

    if callable(kind):
        raise OptionError("@function lacks its parentheses; write @function()")
    values = {**options, **({"kind": kind} if kind is not None else {})}

    def make(function: F) -> LazyHandle:
        lazy = LazyHandle if values.get("exposed_port") is None else LazyServerHandle
        return lazy(function, values)

    return make


isolated = function


def cached(function: F) -> F:
    """Have a function run once per runner for the same arguments; its result stays in memory."""
    return functools.lru_cache(maxsize=None)(function)  # type: ignore[return-value]
