"""Connections of downloads: in a runner they reach public addresses only, and the gateway.

URLs come from callers, who could otherwise make a runner read what only this machine or its
network can. Each connection goes to an address that was checked, those of redirects too.
"""

from __future__ import annotations

import http.client
import os
import socket
from collections.abc import Iterator
from typing import Any
from urllib import request
from urllib.parse import urlsplit

from fal_notebook.addresses import is_public

ALLOW = "FAL_NOTEBOOK_DOWNLOAD_ALLOW"
_PORTS = {"http": 80, "https": 443}
_PRIVATE_HEADERS = ("authorization", "cookie")


class PrivateAddressError(OSError):
    """A host has an address that is not public."""


def opener() -> request.OpenerDirector:
    """Return what opens http, https and data URLs, and no other that a redirect could name."""
    director = request.OpenerDirector()
    for handler in (
        *(request.ProxyHandler, _Http, _Https, request.DataHandler, _Redirects),
        *(request.UnknownHandler, request.HTTPDefaultErrorHandler, request.HTTPErrorProcessor),
    ):
        director.add_handler(handler())
    return director


def connect(address: tuple[str, int], *arguments: Any) -> socket.socket:
    """Connect as `socket.create_connection` does, after a look at where that leads.

    Raises
    ------
    PrivateAddressError
        When one of the host's addresses is not public, and the host is not listed.
    """
    host, port = address
    if "FAL_RUNNER_ID" not in os.environ or {host, f"{host}:{port}"} & set(_listed()):
        return socket.create_connection(address, *arguments)
    found = [e[4][0] for e in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    if not found or not all(is_public(str(ip)) for ip in found):
        raise PrivateAddressError(
            f"{host} has a private address, and URLs may come from anybody; list it in the "
            "setting download_allow if runners may read it"
        )
    return socket.create_connection((str(found[0]), port), *arguments)


def _listed() -> Iterator[str]:
    """Yield the hosts that may be private: the gateway, proxies, and those of the setting."""
    yield from (entry.strip() for entry in os.environ.get(ALLOW, "").split(",") if entry.strip())
    for url in (os.environ.get("FAL_NOTEBOOK_URL", ""), *request.getproxies().values()):
        parts = urlsplit(url if "//" in url else f"http://{url}")
        yield f"{parts.hostname}:{parts.port or _PORTS.get(parts.scheme, 80)}"


class _HttpConnection(http.client.HTTPConnection):
    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._create_connection = connect


class _HttpsConnection(http.client.HTTPSConnection):
    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._create_connection = connect


class _Http(request.HTTPHandler):
    def http_open(self, req: request.Request) -> http.client.HTTPResponse:
        return self.do_open(_HttpConnection, req)


class _Https(request.HTTPSHandler):
    def https_open(self, req: request.Request) -> http.client.HTTPResponse:
        return self.do_open(_HttpsConnection, req)


class _Redirects(request.HTTPRedirectHandler):
    max_redirections = 5

    def redirect_request(self, req: request.Request, *answer: Any) -> request.Request | None:
        """Leave the caller's credentials out of what goes to another origin."""
        new = super().redirect_request(req, *answer)
        if new is not None and _origin(new.full_url) != _origin(req.full_url):
            for name in [n for n in new.headers if n.lower() in _PRIVATE_HEADERS]:
                del new.headers[name]
        return new


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc.lower()
