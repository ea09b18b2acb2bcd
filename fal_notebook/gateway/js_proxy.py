"""``/proxy`` for fal's JavaScript client, which sends all it wants of fal to one URL instead.

The header ``x-fal-target-url`` says what it wants. It becomes a request to a route of this gateway,
with the same method, body and key; nothing is ever fetched from anywhere.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

from starlette.types import Scope

PATHS = frozenset(("/proxy", "/proxy/"))
TARGET_URL = b"x-fal-target-url"

_ROUTES = {
    b"fal.run": b"/run",
    b"queue.fal.run": b"/queue",
    b"rest.fal.ai": b"/rest",
    b"v3.fal.media": b"/cdn",
}
_URL = re.compile(rb"https://([^/?#\s]+)(/[^?#\s]*)?(?:\?([^#\s]*))?")


class ForeignTargetError(Exception):
    """The target is none that this gateway stands for."""


def is_proxied(scope: Scope) -> bool:
    """Say whether a request came by ``/proxy``."""
    return scope["path"] in PATHS


def local(scope: Scope) -> Scope:
    """Return the request that is meant, as if it had come to its own route.

    Raises
    ------
    ForeignTargetError
        One sentence for the caller.
    """
    found = [value for name, value in scope["headers"] if name == TARGET_URL]
    if len(found) != 1:
        raise ForeignTargetError("the header x-fal-target-url says what /proxy is asked for, once")
    url = _URL.fullmatch(found[0])
    route = _ROUTES.get(url[1].lower()) if url else None
    if url is None or route is None:
        known = ", ".join(sorted(name.decode() for name in _ROUTES))
        raise ForeignTargetError(f"x-fal-target-url must be an https URL of one of {known}")
    path = route + (url[2] or b"/")
    return {
        **scope,
        "path": unquote(path.decode("latin-1")),
        "raw_path": path,
        "query_string": url[3] or b"",
        "headers": [(n, v) for n, v in scope["headers"] if n != TARGET_URL],
    }
