"""HTTP/1.1 as uvicorn speaks it, with a bound on what a caller may send before it is known."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
from typing import Any, ClassVar
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fal_notebook.gateway import limits
from fal_notebook.gateway.splice import TUNNEL, Caller
from fal_notebook.gateway.unread import Unread

# The extension of a request's scope that holds a target in absolute form.
TARGET = "fal_notebook.target"
_TOO_LARGE = b"431 Request Header Fields Too Large"
_TOO_LONG = b"414 URI Too Long"
_TOO_SLOW = b"408 Request Timeout"
# The parser overlooks it before a first line, where only CRLF may stand (RFC 9112, 2.2).
_BARE = re.compile(rb"(?:\r\n)*\n")


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
    """uvicorn's protocol; what is not yet a whole head is counted, in bytes and seconds.

    Who is answered before the end of the request has some seconds to end it, or to take the answer.
    """

    # Those that wait for a head or have their answer, silent for longest first.
    _silent: ClassVar[dict[BoundedProtocol, None]] = {}
    # So many bytes have come of a head, or of what stands before it; None while none is awaited.
    _head: int | None = 0
    # So many of them may be of the message before.
    _aside = 0
    # What cannot be read is refused so.
    _fault = b"400 Bad Request"
    # What comes is not read any more.
    _deaf = False
    # Its answer is there, its body not.
    _unended = False
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
        self._wait(limits.HEAD_TIME)
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
        if not last or self.transport.is_closing():
            return
        if self._refusal:
            self._say(*self._refusal)
        elif not self._deaf:
            self._is_silent()
            if self.cycle.more_body:
                self._unended = True
                self._wait(limits.LINGER)
            elif self._head is None:
                self._head = 0

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

    def _wait(self, seconds: float) -> None:
        """Give the caller so many seconds from now."""
        if self._patience is not None:
            self._patience.cancel()
        self._patience = self.loop.call_later(seconds, self._give_up)

    def _give_up(self) -> None:
        """Let go of a caller whose head did not come; one that began it is told so."""
        self._speaks()
        if not self.transport.is_closing():
            self._refuse(_TOO_SLOW) if self._head else self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Refuse what cannot be read."""
        self._refuse(self._fault, msg if self._fault == BoundedProtocol._fault else "")

    def _refuse(self, status: bytes, why: str = "") -> None:
        """Close with an answer, which comes behind those to the requests before."""
        self._deaf = True
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
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # whoever answers it hears that nobody listens
            self.cycle.message_event.set()
        rest = b"\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
        self.transport.write(b"HTTP/1.1 " + status + rest % (len(why), why.encode()))
        self._end()

    def _end(self) -> None:
        """Close a connection on which more may come: a reset would destroy the last answer.

        What comes is thrown away until the caller has closed too, for some seconds (RFC 9112, 9.6).
        """
        self._deaf = True
        self._speaks()
        self._patience = self.loop.call_later(limits.LINGER, self.transport.close)
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def on_message_begin(self) -> None:
        """Start to count."""
        self._head = self._aside = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Stop counting; let the app see a target that is more than a path."""
        assert self._head is not None
        if self._head + len(self._data) > limits.HEAD and self._size() > limits.HEAD:
            self._fault = self._too_much()
            raise ValueError("the head is too large")  # the parser stops
        self._head = None
        self._speaks()
        # A copy: trailers, whatever they are called, come into the list that the parser fills.
        self.scope["headers"] = self.headers.copy()
        if not self.url.startswith(b"/"):
            extensions = self.scope.setdefault("extensions", {})
            extensions[TARGET] = {"url": self.url}
        self._offers_another = self._get_upgrade() not in (None, b"websocket")
        super().on_headers_complete()

    def _size(self) -> int:
        """Return how long the head is without blanks that mean nothing."""
        first = len(self.parser.get_method()) + len(self.url) + len("  HTTP/1.1\r\n")
        return first + sum(len(n) + len(v) + len(": \r\n") for n, v in self.headers) + len("\r\n")

    def _too_much(self) -> bytes:
        return _TOO_LONG if len(self.url) > limits.HEAD // 2 else _TOO_LARGE

    def on_message_complete(self) -> None:
        """Note that what stands behind it in the same bytes is the next head."""
        self._follows = True
        super().on_message_complete()
        if self._unended:
            self._unended = False
            self._wait(limits.HEAD_TIME)

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
        if self._deaf:
            return
        if self._head == 0 and _BARE.match(data):
            self.send_400_response("Invalid HTTP request received.")
            return
        self._data, self._follows = data, False
        super().data_received(data)
        while self._left and not (self._deaf or self.transport.is_closing()):
            self._data, self._left = self._left, b""
            super().data_received(self._data)
        self._data = b""
        if self._head is not None:
            self._count(len(data))
        elif self.cycle is not None and self.cycle.more_body:
            self._is_unread()

    def _count(self, size: int) -> None:
        """Add what has come of a head; wait for the rest, but not for too much."""
        if self._deaf or self.transport.is_closing():
            return
        assert self._head is not None
        self._head += size
        if self._follows:
            self._aside = size
        if self._head - self._aside > limits.HEAD:
            self._refuse(self._too_much())
        elif self._patience is None:
            self._wait(limits.HEAD_TIME)

    def _is_unread(self) -> None:
        """Let no answer close the connection at once whose request is not whole."""
        if self.cycle.transport is self.transport and not self.cycle.response_complete:
            self.cycle.transport = Unread(self.cycle, self._end)
