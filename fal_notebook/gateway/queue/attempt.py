"""One attempt to have a queued request answered by one runner."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import sys
import time
from collections.abc import AsyncIterator, Callable, MutableMapping
from pathlib import Path
from typing import Any

from starlette.types import Send

from fal_notebook.exceptions import StoreError
from fal_notebook.gateway import clock
from fal_notebook.gateway.auth import API, Principal
from fal_notebook.gateway.database import io_errors
from fal_notebook.gateway.exchange import Exchange, RefusedRequestError, Request
from fal_notebook.gateway.fleet import Fleet, Runner, SchedulingError
from fal_notebook.gateway.headers import (
    RAISED_STATUS,
    Header,
    raised_status,
    without_hop_by_hop,
)
from fal_notebook.gateway.logs.redaction import Redaction
from fal_notebook.gateway.queue.content import Spool
from fal_notebook.gateway.queue.retry import Failure
from fal_notebook.gateway.queue.table import Answer, QueuedRequest
from fal_notebook.gateway.replies import error_content
from fal_notebook.gateway.tracing import Trace
from fal_notebook.gateway.upstream import RefusedError, UpstreamError
from fal_notebook.runner import frames

# How often it is looked whether a cancelled request is with its runner (seconds).
CANCEL_PAUSE = 0.1
# Of a failed answer so many characters are told.
LONGEST_ERROR = 1000

_LOG = logging.getLogger(__name__)
_TRUE = (b"1", b"true", b"yes")


class Attempt:
    """Sends a request to a runner whose slot is taken, and keeps what comes back.

    Parameters
    ----------
    body : AsyncIterator
        The request's body.
    path : Path
        Where an answer is put that is too big for the journal.
    redaction : Redaction
        Takes secrets out of what is told of an answer; the answer itself is the app's own.
    trace : Trace
        Records the attempt.
    """

    def __init__(
        self,
        fleet: Fleet,
        runner: Runner,
        request: QueuedRequest,
        body: AsyncIterator[bytes],
        path: Path,
        kill: Callable[[Runner, str], None],
        redaction: Redaction,
        trace: Trace,
    ) -> None:
        self._runner = runner
        self._request = request
        self._body = body
        self._path = path
        self._spool = Spool(path)
        self._redaction = redaction
        self._status = 0
        self._headers: list[Header] = []
        self._exchange = Exchange(fleet, _as_request(request, trace), kill, sys.maxsize)
        self._cancelling: asyncio.Task[None] | None = None

    async def run(self) -> tuple[Answer, Failure | None]:
        """Return the answer, and how the attempt failed when it is worth a look at the retries."""
        try:
            await self._exchange.read_ahead(self._receive)
            await self._exchange.forward(self._runner, self._receive, self._answer_to())
            content = await self._spool.finish()
            raised = await self._raised(content)
        except (UpstreamError, SchedulingError) as error:
            begun = not isinstance(error, RefusedError)
            return self._failed(error.status, error, error.kind, begun)
        except RefusedRequestError as error:
            return self._failed(error.status, error, "bad_request")
        except StoreError as error:
            return self._failed(507, error, "internal_error")
        except Exception as bug:
            _LOG.exception("request %s", self._request.id)
            return self._failed(500, bug, "internal_error")
        finally:
            if self._cancelling is not None:
                self._cancelling.cancel()
        return self._answered(content, raised)

    def _answer_to(self) -> Send:
        """Return what takes the answer; it is seen when that ends a wait for the runner's start."""
        birth, first = self._runner.birth, self._request.attempts == 1
        if birth is None or not first:
            return self._send
        age = max(0.0, time.time() - self._request.number / 1e6)
        return birth.watched(self._send, clock.now() - age)

    def cancel(self) -> None:
        """Tell the app, on this runner, that nobody wants the answer any more.

        One without a cancel route finishes, and its answer stands.
        """
        if self._cancelling is None:
            self._cancelling = asyncio.ensure_future(self._tell_of_cancel())

    async def _tell_of_cancel(self) -> None:
        while not self._exchange.sent:
            await asyncio.sleep(CANCEL_PAUSE)
        await self._exchange.post(self._runner, b"/cancel")

    # --- what the exchange takes for a caller ------------------------------------------------
    async def _receive(self) -> MutableMapping[str, Any]:
        async for piece in self._body:
            return {"type": "http.request", "body": piece, "more_body": True}
        if not self._exchange.received_all:
            return {"type": "http.request", "body": b"", "more_body": False}
        await asyncio.Event().wait()  # a queued request has no caller that could go away
        raise AssertionError

    async def _send(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self._status, self._headers = message["status"], list(message["headers"])
        else:
            await self._spool.write(message.get("body", b""))

    # --- how it ended ------------------------------------------------------------------------
    async def _raised(self, content: bytes | None) -> str:
        """Return the type of what the function raised; of a generator, the last frame tells it."""
        headers = dict(self._headers)
        told = headers.get(frames.RAISED.encode())
        if told is not None or headers.get(b"content-type") != frames.CONTENT_TYPE.encode():
            return (told or b"").decode("latin-1")
        if content is not None:
            return frames.raised_in(io.BytesIO(content))
        return await asyncio.to_thread(_raised_in_file, self._path)

    def _answered(self, content: bytes | None, raised: str) -> tuple[Answer, Failure | None]:
        headers = without_hop_by_hop(self._headers)
        given = dict(headers)
        error, kind = _error(self._status, given, content, raised)
        error = error and self._redaction.current()(error)[:LONGEST_ERROR]
        answer = Answer(self._status, headers, content, error, kind)
        wish = given.get(b"x-fal-needs-retry")
        needs_retry = None if wish is None else wish.lower() in _TRUE
        told = given.get(RAISED_STATUS)  # a call from Python gets its function's error with 200
        status = self._status if told is None else raised_status(told)
        failed = status >= 500 or status == 429
        return answer, Failure(status, "", needs_retry) if failed else None

    def _failed(
        self, status: int, error: Exception, kind: str, begun: bool = True
    ) -> tuple[Answer, Failure]:
        self._spool.discard()
        return failed(status, str(error), kind), Failure(status, kind, begun=begun)


def failed(status: int, detail: str, kind: str, *more: Header) -> Answer:
    """Return the platform's own answer."""
    headers = [
        (b"content-type", b"application/json"),
        (b"x-fal-error-type", kind.encode()),
        *more,
    ]
    content = json.dumps(error_content(detail, kind)).encode()
    return Answer(status, headers, content, detail, kind)


def _raised_in_file(path: Path) -> str:
    with io_errors(path.parent), path.open("rb") as answer:
        return frames.raised_in(answer)


def _error(
    status: int, headers: dict[bytes, bytes], content: bytes | None, raised: str
) -> tuple[str, str]:
    """Return what to show as the error of an answer and its type, empty when it is none."""
    if raised:
        return f"the function raised {raised}", "runner_server_error"
    if status < 400:
        return "", ""
    shown = (content or b"").decode(errors="replace")
    text = f"the app answered {status}: {shown}" if shown else f"the app answered {status}"
    return text, headers.get(b"x-fal-error-type", b"").decode("latin-1")


def _as_request(request: QueuedRequest, trace: Trace) -> Request:
    path, _, query = request.target.partition(b"?")
    scope = {
        "method": request.method,
        "query_string": query,
        "headers": request.headers,
        "http_version": "1.1",
    }
    principal = None if request.user is None else Principal(request.user, API)
    return Request(scope, dict(request.headers), path, request.id, principal, trace)
