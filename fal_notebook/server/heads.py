"""Heads of requests and answers, as they pass between a browser and the gateway: pure functions."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from urllib.parse import unquote_plus

# Between two neighbours only (RFC 9110, 7.6.1); `Transfer-Encoding` stays: bodies pass as they are.
_HOP = {"connection", "keep-alive", "proxy-connection", "proxy-authorization", "upgrade"}
# Jupyter's own, where it is and what lets a caller in: no app may see them.
_OF_JUPYTER = {
    *("host", "cookie", "authorization", "origin", "referer"),
    *("x-xsrftoken", "x-csrftoken"),  # Tornado takes either
}
_PREFIX_OF_JUPYTER = "x-jupyter"
# What counts for all of Jupyter's origin, which an app may not speak for.
_OF_ORIGIN = {
    *("set-cookie", "set-cookie2", "clear-site-data", "service-worker-allowed", "alt-svc"),
    *("strict-transport-security", "www-authenticate", "nel", "report-to", "reporting-endpoints"),
    *("access-control-allow-origin", "access-control-allow-credentials"),
    *("x-content-type-options", "referrer-policy"),  # of two the first would count
}
# Nothing of an app runs as Jupyter's own page, and nothing learns at which URL it was shown.
_SANDBOX = (
    "Content-Security-Policy: sandbox",
    "X-Content-Type-Options: nosniff",
    "Referrer-Policy: no-referrer",
)


@dataclass(frozen=True)
class Upstream:
    """The gateway as requests are addressed to it: host with port, and the owner's token."""

    host: str
    token: str


def request_head(
    line: tuple[str, str, str], headers: Iterable[tuple[str, str]], upstream: Upstream
) -> bytes:
    """Return the head that goes to the gateway.

    Parameters
    ----------
    line : tuple
        Method, target (path and query) and version, such as ``HTTP/1.1``.
    headers : iterable of (name, value)
        As the browser sent them, in their order.
    """
    given = list(headers)
    upgrade = next((v for name, v in given if name.lower() == "upgrade"), "").lower()
    connection = ["Upgrade: websocket", "Connection: Upgrade"]
    lines = [
        " ".join(line),
        f"Host: {upstream.host}",
        f"Authorization: Bearer {upstream.token}",
        *(connection if upgrade == "websocket" else ["Connection: close"]),
        *(f"{name}: {v}" for name, v in given if _passes(name.lower())),
    ]
    return _encoded(lines)


def response_head(head: bytes, upstream: str, prefix: str) -> bytes:
    """Return the head that goes to the browser.

    Parameters
    ----------
    head : bytes
        As the gateway sent it, with the empty line at its end.
    upstream : str
        The gateway's URL; where an answer leads there, it leads to `prefix` instead.
    prefix : str
        Where the browser has the gateway, such as ``/user/ann/fal``.
    """
    if is_interim(head):
        return head
    first, *given = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    upgraded = first.split(" ")[1] == "101"
    lines = [line for line in given if _name(line) not in _OF_ORIGIN]
    if not upgraded:
        lines = [line for line in lines if _name(line) not in _HOP]
        lines += ["Connection: close", *_SANDBOX]
    return _encoded([first, *(_moved(line, upstream, prefix) for line in lines)])


def is_interim(head: bytes) -> bool:
    """Say whether another head follows, as after ``100 Continue``."""
    status = head.split(b" ", 2)[1]
    return status.startswith(b"1") and status != b"101"


def without_secrets(query: str, is_secret: Callable[[str], bool]) -> str:
    """Return a query without Jupyter's XSRF value and without a ``token`` that is a secret."""

    def passes(part: str) -> bool:
        name, _, value = part.partition("=")
        if unquote_plus(name) == "token":  # as Tornado reads it
            return not is_secret(unquote_plus(value))
        return unquote_plus(name) != "_xsrf"

    return "&".join(filter(passes, filter(None, query.split("&"))))


def same(one: str, other: str) -> bool:
    """Say whether two secrets are the same, in constant time; an empty one is none."""
    return bool(one) and hmac.compare_digest(one.encode(), other.encode())


def _passes(name: str) -> bool:
    return name not in _HOP | _OF_JUPYTER and not name.startswith(_PREFIX_OF_JUPYTER)


def _name(line: str) -> str:
    return line.partition(":")[0].strip().lower()


def _moved(line: str, upstream: str, prefix: str) -> str:
    if _name(line) not in ("location", "content-location"):
        return line
    name, _, value = line.partition(":")
    target = value.strip()
    return f"{name}: {prefix}{target[len(upstream) :]}" if target.startswith(upstream) else line


def _encoded(lines: list[str]) -> bytes:
    return "\r\n".join([*lines, "", ""]).encode("latin-1")
