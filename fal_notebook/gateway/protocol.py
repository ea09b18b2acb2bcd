"""HTTP/1.1 as uvicorn speaks it, with a bound on what a caller may send before it is known."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import Any, ClassVar
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fal_notebook.gateway import limits
from fal_notebook.gateway.splice import TUNNEL, Caller

# The extension of a request's scope that holds a target in absolute form.
TARGET = "fal_notebook.target"
_TOO_LARGE = b"431 Request Header Fields Too Large"
_TOO_LONG = b"414 URI Too Long"
_TOO_SLOW = b"408 Request Timeout"


def _tunnel_scope(scope: Any, url: bytes, caller: Caller) -> Any:
    parsed = httptools.parse_url(url)
    return {
        **scope,
        "type": TUNNEL,
        "path": unquote(parsed.path.decode("ascii")),
        "raw_path": parsed.path,
        "query_string": parsed.query or b"",
        "extensions": {TUNNEL: caller},
    }


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol; what is not yet a whole head is counted, in bytes and seconds."""

    # Those that wait for a head, silent for longest first.
    _silent: ClassVar[dict[BoundedProtocol, None]] = {}
    _head: int | None = None
    _offers_another = False
    _data = _left = b""
    _patience: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None
    _refusal: tuple[bytes, str] | None = None
    _follows = False
    url = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first head."""
        super().connection_made(transport)
        self._patience = self.loop.call_later(limits.HEAD_TIME, self._give_up)
        self._is_silent()

    def connection_lost(self, exc: Exception | None) -> None:
        """Free what the connection held."""
        self._speaks()
        self._is_read()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Wait for the next head."""
        last = not self.pipeline
        super().on_response_complete()
        if last and not self.transport.is_closing():
            self._say(*self._refusal) if self._refusal else self._is_silent()

    def pause_writing(self) -> None:
        """Wait until the caller has read; an app's answers are bounded by request_timeout."""
        super().pause_writing()
        if not self.url.startswith(b"/run/"):
            self._unread = self.loop.call_later(limits.READ_STALL, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on: the caller reads."""
        self._is_read()
        super().resume_writing()

    def _is_read(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _is_silent(self) -> None:
        """Stand last in line; whoever stands first makes room where there is none."""
        self._silent[self] = None
        if len(self._silent) > limits.silent():
            next(iter(self._silent))._give_up()

    def _speaks(self) -> None:
        self._silent.pop(self, None)
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _give_up(self) -> None:
        """Let go of a caller whose head did not come; one that began it is told so."""
        self._speaks()
        if not self.transport.is_closing():
            self._refuse(_TOO_SLOW) if self._head is not None else self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Refuse what cannot be read."""
        self._refuse(b"400 Bad Request", msg)

    def _refuse(self, status: bytes, why: str = "") -> None:
        """Close with an answer, which comes behind those to the requests before."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            self._say(status, why)
        elif not cycle.more_body or self.pipeline:
            if cycle.more_body:  # its body is what cannot be read
                self.pipeline.popleft()
            self._refusal = status, why
        elif cycle.response_started:
            self.transport.abort()  # it would stand in the midst of an answer
        else:
            self._say(status, why)

    def _say(self, status: bytes, why: str) -> None:
        rest = b"\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
        self.transport.write(b"HTTP/1.1 " + status + rest % (len(why), why.encode()))
        self.transport.close()

    def on_message_begin(self) -> None:
        """Start to count."""
        self._head = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Stop counting; let the app see a target that is more than a path."""
        self._head = None
        self._speaks()
        # A copy: trailers, whatever they are called, come into the list that the parser fills.
        self.scope["headers"] = self.headers.copy()
        if not self.url.startswith(b"/"):
            extensions = self.scope.setdefault("extensions", {})
            extensions[TARGET] = {"url": self.url}
        self._offers_another = self._get_upgrade() not in (None, b"websocket")
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Note that what stands behind it in the same bytes is the next head."""
        self._follows = True
        super().on_message_complete()

    def _get_upgrade(self) -> bytes | None:
        """Return what is offered, where the parser takes the request for one of an upgrade."""
        upgrade: bytes | None = dict(self.scope["headers"]).get(b"upgrade")
        return upgrade.lower() if upgrade is not None and self.parser.should_upgrade() else None

    def _should_upgrade(self) -> bool:
        return self._offers_another or super()._should_upgrade()

    def _unsupported_upgrade_warning(self) -> None:
        """Stay silent: the app says to the caller that there is no such upgrade."""

    def _should_upgrade_to_ws(self) -> bool:
        return self.url.startswith(b"/run/")

    def handle_websocket_upgrade(self) -> None:
        """Hand the connection to a `Caller`, and the request to the app as any other."""
        if self._offers_another:
            self._decline()
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self.send_400_response("The request before this upgrade is not answered yet.")
            return
        caller = Caller()
        caller.connection_made(self.transport)
        self.connections.discard(self)
        self.transport.set_protocol(caller)
        scope = _tunnel_scope(self.scope, self.url, caller)
        task = self.loop.create_task(self.app(scope, caller.receive, caller.send))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    def _decline(self) -> None:
        """Read the request again without its offer, which may be ignored (RFC 9110, 7.8).

        The parser took its body for the other protocol, and may want nothing more: a new one does.
        """
        upgrade = sys.exc_info()[1]
        assert isinstance(upgrade, httptools.HttpParserUpgrade)
        kept = [header for header in self.scope["headers"] if header[0] != b"upgrade"]
        first = b"%b %b HTTP/%b" % (
            self.scope["method"].encode(),
            self.url,
            self.scope["http_version"].encode(),
        )
        head = b"\r\n".join([first, *(name + b": " + value for name, value in kept)])
        self._left = head + b"\r\n\r\n" + self._data[upgrade.args[0] :]
        self._offers_another = False
        self.parser = httptools.HttpRequestParser(self)
        with contextlib.suppress(AttributeError):  # as uvicorn does; httptools before 0.6.3
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)

    def data_received(self, data: bytes) -> None:
        """Read it; refuse a head that does not end."""
        if self._refusal is not None:
            return
        self._left, self._follows = data, False
        while self._left and not self.transport.is_closing():
            self._data, self._left = self._left, b""
            super().data_received(self._data)
        self._data = b""
        if self._head is None or self.transport.is_closing():
            return
        self._head += 0 if self._follows else len(data)
        if self._head > limits.HEAD:
            self._refuse(_TOO_LONG if len(self.url) > limits.HEAD // 2 else _TOO_LARGE)
        elif self._patience is None:
            self._patience = self.loop.call_later(limits.HEAD_TIME, self._give_up)
