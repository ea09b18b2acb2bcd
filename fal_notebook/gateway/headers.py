"""Which headers pass between a caller and a runner, and what the gateway adds; pure functions."""

from __future__ import annotations

from collections.abc import Iterable

from fal_notebook.runner import frames
from fal_notebook.runner.frames import CONTENT_TYPE
from fal_notebook.runner.spec import TOLD

Header = tuple[bytes, bytes]

_HOP_BY_HOP = frozenset(
    (
        *(b"connection", b"proxy-connection", b"keep-alive", b"proxy-authenticate"),
        *(b"proxy-authorization", b"te", b"trailer", b"transfer-encoding", b"upgrade"),
    )
)
# A caller names what it would like to find, a runner what is there (models it has loaded).
# With what status a call from Python failed, whose own answer is 200.
RAISED_STATUS = frames.RAISED_STATUS.encode()
HINT, HINTS = b"x-fal-runner-hint", b"x-fal-runner-hints"
PREFERENCE = b"x-fal-object-lifecycle-preference"
_CALLER_MAY_SET = frozenset(
    (
        *(HINT, b"x-fal-queue-priority", b"x-fal-request-timeout"),
        *(b"x-fal-no-retry", b"x-fal-store-io", PREFERENCE),
    )
)
# Two of these would let the gateway and a runner read different requests, or say two things.
_ONCE = frozenset(
    (
        *(b"x-fal-submit-id", b"x-fal-request-timeout", b"x-fal-queue-priority"),
        *(b"x-fal-no-retry", b"x-fal-store-io", PREFERENCE),
        *(b"host", b"origin", b"authorization"),
        *(b"content-type", b"content-length", b"transfer-encoding"),
        *(b"sec-websocket-key", b"sec-websocket-version"),
    )
)
# Headers by which the platform speaks to apps; a server on WSGI takes '_' for '-'.
_PLATFORM = frozenset((b"x-fal-", b"x_fal_", b"x-fal_", b"x_fal-"))
# Without these a body has no end, or another one: `Connection` cannot name them away.
_END_TO_END = frozenset((b"host", b"content-length", b"transfer-encoding"))
_PICKLE = CONTENT_TYPE.encode()


def repeated(headers: list[Header]) -> str | None:
    """Return the name of a header that must not, but does, occur twice."""
    seen = set()
    for name, _ in headers:
        if name in seen and name in _ONCE:
            return name.decode("latin-1")
        seen.add(name)
    return None


def hints(value: bytes) -> frozenset[bytes]:
    """Return the hints that a runner names in its header."""
    return frozenset(hint.strip() for hint in value.split(b","))


def is_pickle(content_type: bytes | None) -> bool:
    """Say whether a body is declared as pickled Python, however that is spelled."""
    return content_type is not None and _PICKLE in content_type.lower()


def request_head(
    method: bytes,
    target: bytes,
    headers: list[Header],
    added: Iterable[Header],
    keep_authorization: bool,
    as_it_came: bool = False,
    says_of_body: bool = True,
) -> bytes:
    """Return the head of the request that goes to a runner.

    Parameters
    ----------
    target : bytes
        Path and query, as the caller sent them.
    added : iterable
        The gateway's own headers; a caller cannot set any of them.
    keep_authorization : bool
        False when the header was for the gateway.
    as_it_came : bool
        True leaves the body's length and ``Expect`` where they stand.
    says_of_body : bool
        False leaves out what the headers say of a body (``Content-Type`` and the like).
    """
    hidden = _hop_by_hop(headers)
    if not as_it_came:
        hidden |= {b"content-length", b"expect"}
    if not keep_authorization:
        hidden |= {b"authorization"}
    lines = [method + b" " + target + b" HTTP/1.1"]
    for name, value in headers:
        if name in hidden or (name[:6] in _PLATFORM and name not in _CALLER_MAY_SET):
            continue
        if says_of_body or not name.startswith(b"content-"):
            lines.append(name + b": " + value)
    lines += [name + b": " + value for name, value in added]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def response_headers(headers: list[Header], status: int, request_id: bytes) -> list[Header]:
    """Return the headers that the caller gets; a body's length stays unless there is no body."""
    hidden = _hop_by_hop(headers) | {b"x-fal-request-id", b"x-fal-stop-runner", TOLD}
    hidden |= {b"x-fal-runner-health-check"}
    if status in (204, 304):
        hidden |= {b"content-length"}
    passed = [(name, value) for name, value in headers if name not in hidden]
    passed.append((b"x-fal-request-id", request_id))
    return passed


def without_hop_by_hop(headers: list[Header]) -> list[Header]:
    """Return the headers that say something about an answer, not about its connection."""
    hidden = _hop_by_hop(headers)
    return [(name, value) for name, value in headers if name not in hidden]


def _hop_by_hop(headers: list[Header]) -> frozenset[bytes]:
    """Return the headers of this hop: the usual ones and those that `Connection` names."""
    named: set[bytes] = set()
    for name, value in headers:
        if name == b"connection":
            named.update(part.strip().lower() for part in value.split(b","))
    return _HOP_BY_HOP | (named - _END_TO_END) if named else _HOP_BY_HOP


def raised_status(value: bytes) -> int:
    """Return the status of an error that the header `RAISED_STATUS` names; a wrong one is 500."""
    return int(value) if value.isdigit() and len(value) == 3 else 500
