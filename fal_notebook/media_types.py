"""How a file is named of which the content type alone is known."""

from __future__ import annotations

import mimetypes


def extension(content_type: str) -> str:
    """Return the usual ending of a name, with its dot; ``.bin`` where none is."""
    kind = content_type.partition(";")[0].strip()
    older = kind.replace("/", "/x-", 1)  # Python knows audio/wav as audio/x-wav only
    found = (mimetypes.guess_extension(each, strict=False) for each in (kind, older))
    return next(filter(None, found), ".bin")
