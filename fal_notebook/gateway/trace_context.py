"""W3C Trace Context: which of a caller's headers say to what trace a request belongs; pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from fal_notebook.gateway.headers import Header

TRACEPARENT, TRACESTATE = b"traceparent", b"tracestate"

_BOTH = (TRACEPARENT, TRACESTATE)
_KNOWN = re.compile(
    rb"(?!ff)(?P<version>[0-9a-f]{2})-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
    rb"(?P<more>-.*)?"
)


def is_valid(traceparent: bytes) -> bool:
    """Say whether this is a trace to take part in; versions after 00 may say more at its end."""
    found = _KNOWN.fullmatch(traceparent)
    return found is not None and (found["version"] != b"00" or found["more"] is None)


def checked(headers: list[Header], by_name: Mapping[bytes, bytes]) -> list[Header]:
    """Return a caller's headers, without those of a trace unless they name exactly one.

    Parameters
    ----------
    by_name : mapping
        The same headers, the last of each name.
    """
    if TRACEPARENT not in by_name and TRACESTATE not in by_name:
        return headers
    parents = [value for name, value in headers if name == TRACEPARENT]
    if len(parents) == 1 and is_valid(parents[0]):
        return headers
    return without(headers)


def without(headers: Iterable[Header]) -> list[Header]:
    """Return the headers that say nothing of a trace."""
    return [header for header in headers if header[0] not in _BOTH]


def of(headers: Iterable[Header]) -> dict[str, str]:
    """Return the trace that checked headers name, as headers by name; {} without one."""
    found = dict[str, str]()
    for name, value in headers:
        if name in _BOTH:
            key, text = name.decode(), value.decode("latin-1")
            found[key] = f"{found[key]},{text}" if key in found else text
    return found
