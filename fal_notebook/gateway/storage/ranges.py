"""Which bytes of a file a Range header asks for; pure functions."""

from __future__ import annotations

import re

_RANGE = re.compile(r" *bytes *= *(\d{0,999}) *- *(\d{0,999}) *", re.ASCII | re.IGNORECASE)


class UnsatisfiableError(Exception):
    """The range begins behind the end of the file (416)."""


def span(header: str, size: int) -> tuple[int, int] | None:
    """Return first byte and the one behind the last; None for the whole file.

    Several ranges, and what cannot be read, are answered with the whole file, as RFC 9110 allows.

    Raises
    ------
    UnsatisfiableError
    """
    found = _RANGE.fullmatch(header)
    if found is None or found.groups() == ("", ""):
        return None
    first, last = found.groups()
    if not first:
        begin, end = max(0, size - int(last)), size
    else:
        begin, end = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < begin:
            return None
    if begin >= size or begin >= end:
        raise UnsatisfiableError
    return begin, end
