"""What an app can know of the request it works for; the runner enters it."""

from __future__ import annotations

import json
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

_Header = tuple[bytes, bytes]

raw_headers: ContextVar[list[_Header] | None] = ContextVar("fal_request_headers", default=None)


@dataclass(frozen=True)
class RequestContext:
    """One request.

    Attributes
    ----------
    request_id : str or None
        As in the response's ``x-fal-request-id``.
    endpoint : str or None
        The path that was called.
    lifecycle_preference : dict or None
        How long the caller wants files of this request to be kept.
    headers : dict
        The request's headers by lower-case name.
    """

    request_id: str | None = None
    endpoint: str | None = None
    lifecycle_preference: dict[str, Any] | None = None
    headers: dict[str, str] = field(default_factory=dict)


def current_request() -> RequestContext | None:
    """Return the request of the present task or thread, None between requests."""
    given = raw_headers.get()
    if given is None:
        return None
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in given}
    return RequestContext(
        headers.get("x-fal-request-id"),
        headers.get("x-fal-endpoint"),
        lifecycle_preference(headers.get("x-fal-object-lifecycle-preference")),
        headers,
    )


def lifecycle_preference(text: str | None) -> dict[str, Any] | None:
    """Read the header's JSON; what is none counts as not said."""
    try:
        value = json.loads(text or "null")
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
