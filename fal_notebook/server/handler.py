"""The handler of every request below ``fal/``: who may, and what the gateway gets to see."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from http.client import responses
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import JupyterHandler
from jupyter_server.utils import url_path_join
from tornado import web
from tornado.iostream import IOStream, StreamClosedError
from tornado.tcpclient import TCPClient

from fal_notebook import discovery, settings
from fal_notebook.exceptions import FalNotebookError
from fal_notebook.server.heads import Upstream, request_head, response_head, same, without_secrets
from fal_notebook.server.relay import relay

_SAFE = ("same-origin", "none")
# So long (seconds) the control API may take to begin an answer; an app may take for ever.
_PATIENCE = 10.0

Gateway = tuple[discovery.GatewayInfo, IOStream]
Find = Callable[[Path], "discovery.GatewayInfo | None"]


def routes(base_url: str) -> list[tuple[str, type[JupyterHandler]]]:
    """Return the extension's routes, for Jupyter's base URL."""
    return [(re.escape(url_path_join(base_url, "fal")) + "/.*", GatewayHandler)]


@web.stream_request_body
class GatewayHandler(JupyterHandler):
    """Relays a request to the gateway, which is started on demand; of any verb, any size, any kind.

    Once it is clear who calls, the connection is taken from Tornado and its bytes pass as they
    are: uploads, events and WebSockets alike. It serves one request and is closed then, so that
    nothing reaches the gateway unchecked.
    """

    auth_resource: ClassVar[str] = "fal"

    async def prepare(self) -> None:  # type: ignore[override]
        """Decide and relay before the body is read: it is none of Tornado's concern."""
        await super().prepare()
        if not self._finished:
            await self._relayed()  # type: ignore[misc]

    @web.authenticated
    @authorized
    async def _relayed(self) -> None:
        self._refuse_other_pages()
        gateway = await self._connected(discovery.published, discovery.ensure)
        browser = self.detach()
        try:
            if await self._passes(browser, gateway):
                return
            # The gateway has just gone, and what only reads can be asked of the next one.
            reads = self.request.method in ("GET", "HEAD")
            if reads and await self._passes(browser, await self._connected(discovery.ensure)):
                return
            answer = _answer(502, "the gateway went away during the request; try again")
        except asyncio.TimeoutError:
            answer = _answer(504, f"the gateway has not answered for {_PATIENCE:g} s")
        except web.HTTPError as error:
            answer = _answer(error.status_code, str(error.log_message))
        with suppress(StreamClosedError):
            await browser.write(answer)
        browser.close()

    async def _passes(self, browser: IOStream, gateway: Gateway) -> bool:
        info, connection = gateway
        prefix = url_path_join(self.base_url, "fal")
        upstream = Upstream(urlsplit(info.url).netloc, info.token)
        line = (str(self.request.method), self._target(prefix), self.request.version)
        head = request_head(line, self.request.headers.get_all(), upstream)
        rewritten = partial(response_head, upstream=info.url, prefix=prefix)
        asks = self.request.method == "GET" and line[1].startswith("/api/")
        return await relay(browser, connection, head, rewritten, _PATIENCE if asks else None)

    get = head = post = put = patch = delete = options = _relayed

    def get_login_url(self) -> str:
        """Refuse who is not logged in; a script has no use for the login page."""
        raise web.HTTPError(403, "log in to Jupyter first, or send its token")

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Answer with one sentence in FastAPI's shape."""
        error = kwargs.get("exc_info", (None, None))[1]
        said = getattr(error, "log_message", None)
        detail = said % error.args if error and said else self._reason
        self.set_header("Content-Type", "application/json")
        self.set_header("Connection", "close")  # for the body is not read
        self.finish(json.dumps({"detail": detail}))

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        """Log a refusal without its query, which may hold a caller's key or Jupyter's token."""
        if not isinstance(value, web.HTTPError):
            super().log_exception(typ, value, tb)
        elif value.log_message:
            told = value.log_message % value.args
            request = self.request
            self.log.warning("%d %s %s: %s", value.status_code, request.method, request.path, told)

    def _refuse_other_pages(self) -> None:
        """Let no foreign page, and no page of an app, act for who is logged in here."""
        foreign = self.request.headers.get("Sec-Fetch-Site", "none") not in _SAFE
        if not self.check_origin() or (foreign and not self.token_authenticated):
            raise web.HTTPError(403, "requests from other web pages are refused")

    def _target(self, prefix: str) -> str:
        path, mark, query = str(self.request.uri)[len(prefix) :].partition("?")
        return path + mark + without_secrets(query, self._is_jupyters)

    def _is_jupyters(self, token: str) -> bool:
        return self.token_authenticated or same(token, self.identity_provider.token)

    async def _connected(self, *ways: Find) -> Gateway:
        """Return the gateway that the first of these ways finds, with a new connection to it."""
        for find in ways:
            try:
                info = await asyncio.to_thread(find, settings.state_folder())
                if info is not None and _is_ours(info):
                    address = urlsplit(info.url)
                    return info, await TCPClient().connect(
                        str(address.hostname), int(address.port or 80)
                    )
            except FalNotebookError as error:
                raise web.HTTPError(503, str(error)) from None
            except OSError:
                continue
        raise web.HTTPError(503, "the gateway does not answer; try again")


def _answer(status: int, detail: str) -> bytes:
    """Return an answer for a connection that is none of Tornado's any more."""
    head = f"HTTP/1.1 {status} {responses[status]}\r\nContent-Type: application/json\r\n"
    return (head + "Connection: close\r\n\r\n" + json.dumps({"detail": detail})).encode()


def _is_ours(info: discovery.GatewayInfo) -> bool:
    """Say whether this gateway is there and no older one, which `discovery.ensure` replaces."""
    return info.protocol >= discovery.PROTOCOL and discovery.is_alive(info)
