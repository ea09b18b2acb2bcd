"""What HTTP has no form for is refused before it is sent; uvicorn would close the connection."""

from __future__ import annotations

import re
from collections.abc import Callable

from starlette.types import Message, Receive, Scope, Send

from fal_notebook.exceptions import FalNotebookError
from fal_notebook.runner.refusals import failure

# RFC 9110, 5.1 and 5.5.
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(rb"[^\x00-\x08\x0a-\x1f\x7f]*")
_LENGTH = re.compile(rb"[0-9]{1,18}")


class UnsendableError(FalNotebookError):
    """The app answered with what is no HTTP."""


def unsendable(start: Message) -> str:
    """Return what is wrong with the head of an answer, "" of one that can be sent."""
    status = start["status"]
    if not isinstance(status, int) or not 200 <= status <= 599:
        return f"the status {status!r}; an answer has one of 200 to 599"
    for name, value in start["headers"]:
        text = name.decode("latin-1")
        if not _NAME.fullmatch(name):
            return f"a header named {text!r}; names have letters, digits and !#$%&'*+-.^_`|~"
        if not _VALUE.fullmatch(value):
            return f"a header {text!r} whose value has a line break or another control character"
        if name.lower() == b"content-length" and not _LENGTH.fullmatch(value):
            return f"a header {text!r} that is no number of bytes"
    names = {name.lower() for name, _ in start["headers"]}
    if names >= {b"content-length", b"transfer-encoding"}:  # RFC 9112, 6.2
        return "both a content-length and a transfer-encoding"
    return ""


class Sendable:
    """A `send` that answers 500 in place of what cannot be sent.

    Parameters
    ----------
    failed : callable
        Told of the error then.
    """

    def __init__(
        self, failed: Callable[[Exception], object], scope: Scope, receive: Receive, send: Send
    ) -> None:
        self._failed = failed
        self._scope = scope
        self._receive = receive
        self._send = send
        self._replaced = False

    async def __call__(self, message: Message) -> None:
        """Send a message, or nothing once another answer was given."""
        starts = message["type"] == "http.response.start"
        wrong = unsendable(message) if starts else ""
        if wrong:
            self._replaced = True
            self._failed(UnsendableError(f"the app answered with {wrong}"))
            await failure()(self._scope, self._receive, self._send)
        elif not self._replaced:
            await self._send(message)
