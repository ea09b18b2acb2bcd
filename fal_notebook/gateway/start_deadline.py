"""Until when a request must have begun, as its caller or the app says; direct or queued."""

from __future__ import annotations

import re

from fal_notebook.gateway.auth import Principal
from fal_notebook.gateway.exchange import RefusedRequestError
from fal_notebook.gateway.fleet import Fleet
from fal_notebook.gateway.headers import Header

YEAR = 365 * 24 * 3600
# How a request that did not begin in time is answered, with 504.
KIND = "request_timeout"
BY_USER: Header = (b"x-fal-request-timeout-type", b"user")

_HEADER = b"x-fal-request-timeout"
_SECONDS = re.compile(rb"[0-9]+(\.[0-9]*)?")


def patience(app: Fleet, headers: dict[bytes, bytes], principal: Principal | None) -> float | None:
    """Return the seconds until which a request must have begun, None without a limit.

    The caller's header x-fal-request-timeout wins over the app's request_start_timeout, which is
    for requests of its owner.

    Raises
    ------
    RefusedRequestError
        422 when the header is malformed.
    """
    text = headers.get(_HEADER)
    if text is None:
        owns = principal is not None and principal.user == app.owner
        return app.start_timeout if owns else None
    if _SECONDS.fullmatch(text) and 1 < float(text) <= YEAR:
        return float(text)
    shown = text.decode("latin-1")
    detail = f"x-fal-request-timeout={shown!r} is not allowed: seconds above 1, at most a year"
    raise RefusedRequestError(422, detail)


def missed(headers: dict[bytes, bytes], attempts: int = 0) -> str:
    """Return what a request that did not begin in time is told: the limit was its own, or not.

    After failed attempts it is the next one that could not.
    """
    limit = "its x-fal-request-timeout" if _HEADER in headers else "the app's request_start_timeout"
    if not attempts:
        return f"the request did not begin within {limit}"
    failed = "one attempt" if attempts == 1 else f"{attempts} attempts"
    return f"after {failed} that failed, the next could not begin within {limit}"
