"""Where a webhook may go: a plain http(s) URL whose every address is public, or a listed host."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from fal_notebook.addresses import is_public
from fal_notebook.exceptions import WebhookUrlError
from fal_notebook.gateway.webhooks.names import Names

Resolve = Callable[[str, int], Awaitable[list[str]]]
resolve: Resolve = Names().resolve

# A submit waits this long (seconds) for a name; what takes longer is checked at delivery only.
CHECK_TIMEOUT = 3.0

# The paths of one host and port are told apart as so many targets: a server with a path for each
# request is no endless number of targets. A path whose last webhook held nothing is one of its own.
LANES = 4096

_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"(?=.{1,253}$)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?")


@dataclass(frozen=True)
class Target:
    """The parts of a checked URL; `path` holds the query."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """The host, and the port if it is not the scheme's own."""
        return self._shown_host if self.port == _PORTS[self.scheme] else self.address

    @property
    def origin(self) -> str:
        """What may be shown: a path or query can hold a secret."""
        return f"{self.scheme}://{self.authority}"

    @property
    def _shown_host(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host

    @property
    def address(self) -> str:
        """Host and port."""
        return f"{self._shown_host}:{self.port}"

    @property
    def lane(self) -> str:
        """What is dead or alive as one: the address, and a number of its path (not its query)."""
        return f"{self.address}#{self._number % LANES}"

    @property
    def own_lane(self) -> str:
        """The lane of this path alone."""
        return f"{self.lane}={self._number:x}"

    @property
    def _number(self) -> int:
        return zlib.crc32(self.path.partition("?")[0].encode())

    def is_listed(self, allow: str) -> bool:
        """Whether `allow`, a comma list of host[:port], names it."""
        listed = {entry.strip().lower() for entry in allow.split(",")}
        return bool(listed & {self._shown_host, self.address})


def address_of(lane: str) -> str:
    """Return host and port of a lane."""
    return lane.rpartition("#")[0]


def parse(url: str) -> Target:
    """Return the parts of a webhook's URL.

    Raises
    ------
    WebhookUrlError
        When it is malformed, not http(s), or holds a user or password.
    """
    if not re.fullmatch(r"[!-~]+", url):
        raise _malformed("has characters that must be percent-encoded")
    try:
        parts = urlsplit(url)
        host, port = _host(parts.netloc, parts.hostname or ""), parts.port
    except ValueError:
        raise _malformed("has no valid host or port") from None
    if parts.scheme not in _PORTS:
        raise _malformed("does not start with http:// or https://")
    if port == 0:
        raise _malformed("has no valid host or port")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(parts.scheme, host, port or _PORTS[parts.scheme], path)


def _host(netloc: str, host: str) -> str:
    if "@" in netloc:
        raise _malformed("holds a user or password; put a token into its path or query")
    if "[" in netloc:
        if "%" in host:
            raise ValueError("a scope")
        return str(ipaddress.IPv6Address(host))
    if not _HOST.fullmatch(host):
        raise ValueError("a host")
    return host.removesuffix(".")  # no resolver knows 127.0.0.1. for what it is


def _malformed(why: str) -> WebhookUrlError:
    return WebhookUrlError(f"the webhook URL {why}; pass one like https://example.com/hook")


async def addresses(target: Target, allow: str, resolve: Resolve = resolve) -> list[str]:
    """Return the addresses to connect to, each checked.

    Raises
    ------
    WebhookUrlError
        When one of them is not public and the host is not listed in `allow`.
    OSError
        When the name does not resolve.
    """
    found = await resolve(target.host, target.port)
    if not target.is_listed(allow) and not all(map(is_public, found)):
        raise WebhookUrlError(
            f"the webhook's host {target.host} has a private or reserved address; use a public "
            f"one, or let the gateway's owner list it in the setting webhook_allow"
        )
    return found


async def check(url: str, allow: str, resolve: Resolve = resolve) -> None:
    """Refuse a URL at submit; a name that does not resolve now is left to the delivery.

    Parameters
    ----------
    allow : str
        The setting ``webhook_allow``: a comma list of host[:port] that may be private.

    Raises
    ------
    WebhookUrlError
        When it is malformed or points to an address that is not public.
    """
    target = parse(url)
    with contextlib.suppress(OSError, asyncio.TimeoutError):
        await asyncio.wait_for(addresses(target, allow, resolve), CHECK_TIMEOUT)
