"""Pydantic's `Field` with a hint how a form shows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pydantic


def shown_as(kind: str | None) -> Callable[..., Any]:
    """Return a ``Field`` of a kind of file; its `ui` adds other hints."""

    def make(*args: Any, ui: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        own = {**({"field": kind} if kind else {}), **(ui or {})}
        if not own:
            return pydantic.Field(*args, **kwargs)
        extra = kwargs.pop("json_schema_extra", None) or {}

        def extend(schema: dict[str, Any]) -> None:
            extra(schema) if callable(extra) else schema.update(extra)
            schema["ui"] = {**own, **schema.get("ui", {})}

        return pydantic.Field(*args, json_schema_extra=extend, **kwargs)

    return make


if TYPE_CHECKING:
    from pydantic import Field as Field
else:
    Field = shown_as(None)
