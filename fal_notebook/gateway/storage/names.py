"""What a caller says of a file, checked: name, content type, lifetime; pure functions."""

from __future__ import annotations

import json
import math
import re
from urllib.parse import quote, unquote

from fal_notebook import media_types
from fal_notebook.gateway.exchange import RefusedRequestError

LONGEST_NAME = 128
DEFAULT_TYPE = "application/octet-stream"
# A lifetime above a century is none.
_FOREVER = 100 * 365 * 24 * 3600

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_TYPE = re.compile(r"[\w!#$&^.+-]+/[\w!#$&^.+-]+( *;[\x20-\x7e]*)?", re.ASCII)
_MEDIA = re.compile(r"(image|audio|video)/(?!svg)", re.IGNORECASE)


def file_name(text: str, kind: str) -> str:
    """Return the last part of a name; it goes into URLs and headers, never to the disk.

    Without a name it is one that fits the content type.

    Raises
    ------
    RefusedRequestError
        400 for a name that leads out of its folder, or holds control characters.
    """
    parts = text.replace("\\", "/").split("/")
    if text.startswith(("/", "\\")) or ".." in parts or _CONTROL.search(text):
        detail = "the file's name may not be absolute, hold '..' or control characters"
        raise RefusedRequestError(400, detail)
    name = parts[-1][-LONGEST_NAME:]
    return f"upload{media_types.extension(kind)}" if name in ("", ".") else name


def named_by(header: bytes | None, kind: str) -> str:
    """Return the name that a header gives, percent-encoded or as it is."""
    try:
        return file_name(unquote((header or b"").decode(), errors="strict"), kind)
    except UnicodeDecodeError:
        raise RefusedRequestError(400, "the file's name is not UTF-8") from None


def content_type(text: str) -> str:
    """Return a content type that can be sent in a header.

    Raises
    ------
    RefusedRequestError
        400
    """
    if not text:
        return DEFAULT_TYPE
    if len(text) > 200 or not _TYPE.fullmatch(text):
        raise RefusedRequestError(400, f"{text[:80]!r} is not a content type such as image/png")
    return text


def disposition(media_type: str, name: str) -> bytes:
    """Return how a browser takes a file: it shows media, all else it saves.

    SVG is saved, for it may hold scripts; an <img> shows it all the same.
    """
    how = "inline" if _MEDIA.match(media_type) else "attachment"
    return f"{how}; filename*=UTF-8''{quote(name, safe='')}".encode()


def lifetime(header: bytes | None, default: int) -> float | None:
    """Return for how many seconds a file is kept; None: until it is deleted.

    Raises
    ------
    RefusedRequestError
        400 when the preference cannot be read, or asks for what a URL cannot give.
    """
    preference = _preference(header)
    seconds = preference.get("expiration_duration_seconds")
    if seconds is None:
        return default or None
    if (
        isinstance(seconds, bool)
        or not isinstance(seconds, (int, float))
        or not 0 < seconds < math.inf
    ):
        raise RefusedRequestError(400, "expiration_duration_seconds must be a number above 0")
    return float(seconds) if seconds < _FOREVER else None


def _preference(header: bytes | None) -> dict[str, object]:
    try:
        found = json.loads(header or b"{}")
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise RefusedRequestError(400, "x-fal-object-lifecycle(-preference) is not a JSON object")
    access = found.get("initial_acl") or {}
    if access != {} and access != {"default": "allow"}:
        detail = "initial_acl cannot be kept here: whoever has a file's URL can read it"
        raise RefusedRequestError(400, detail)
    return found
