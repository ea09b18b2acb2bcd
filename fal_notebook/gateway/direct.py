"""A direct request, ``/run``: it waits for a runner with its caller, and is never retried."""

from __future__ import annotations

import asyncio
import logging
import time

from starlette.types import Receive, Send

from fal_notebook.gateway import clock, errors, start_deadline
from fal_notebook.gateway.exchange import (
    ClientGoneError,
    Exchange,
    RefusedRequestError,
    Request,
)
from fal_notebook.gateway.fleet import Fleet, Runner, SchedulingError
from fal_notebook.gateway.headers import HINT, Header
from fal_notebook.gateway.replies import error_reply
from fal_notebook.gateway.start_deadline import BY_USER, KIND
from fal_notebook.gateway.upstream import RefusedError, UpstreamError

# So many runners that do not accept are tried; nothing was sent to them, so that is safe.
ATTEMPTS = 4

_INTERNAL = "internal error of the gateway"

log = logging.getLogger(__name__)


class StartDeadlineError(SchedulingError):
    """The request did not begin as soon as its caller wants."""


class DirectRequest:
    """One request, from its first body byte to its last answer byte.

    Parameters
    ----------
    exchange : Exchange
        What to do with a runner.
    """

    def __init__(self, app: Fleet, request: Request, exchange: Exchange) -> None:
        self._app = app
        self._request = request
        self._exchange = exchange
        self._started = time.perf_counter()
        self._failed_as = ""

    async def run(self, receive: Receive, send: Send) -> None:
        """Take a slot, forward, count; every failure becomes one answer of ours."""
        self._app.metrics.received.inc()
        try:
            await self._exchange.read_ahead(receive)
            await self._attempt(receive, send)
        except ClientGoneError:
            self._exchange.status = 499
        except RefusedRequestError as error:
            await self._refuse(send, error.status, str(error), "bad_request")
        except SchedulingError as error:
            late = isinstance(error, StartDeadlineError)
            self._record(error.kind, error.for_owner, began=not late)
            principal = self._request.principal
            detail = error.for_owner if principal and principal.controls else str(error)
            extra = (BY_USER,) if late else ()
            await self._refuse(send, error.status, detail, error.kind, extra)
        except UpstreamError as error:
            self._record(error.kind, str(error))
            await self._refuse(send, error.status, str(error), error.kind)
        except Exception:
            log.exception("request %s", self._request.id)
            self._record("internal_error", _INTERNAL)
            await self._refuse(send, 500, _INTERNAL, "internal_error")
        finally:
            seconds = time.perf_counter() - self._started
            status = self._exchange.raised or self._exchange.status
            principal = self._request.principal
            user = principal.user if principal else None
            self._app.answered(self._request.path, status, seconds, user)
            self._request.trace.end(self._exchange.status, self._failed_as)

    async def _refuse(
        self,
        send: Send,
        status: int,
        detail: str,
        kind: str,
        extra: tuple[Header, ...] = (),
    ) -> None:
        """Answer in the platform's own shape; a response that has begun is cut instead."""
        begun, self._exchange.status = self._exchange.status, status
        self._failed_as = kind
        reply = error_reply(status, detail, self._request.id, kind, extra=extra)
        if not begun:
            await reply(send)

    def _record(self, kind: str, detail: str, began: bool = True) -> None:
        """Add a failure of ours to the app's errors, with the beginning of the body."""
        given, kept = self._request.headers.get(b"content-type", b""), self._exchange.beginning
        errors.of_platform(self._app, kind, detail, self._request.id, kept, given, began)

    async def _attempt(self, receive: Receive, send: Send) -> None:
        """Give the request to a runner; when one does not accept it, another is taken."""
        headers = self._request.headers
        hint = headers.get(HINT)
        patience = start_deadline.patience(self._app, headers, self._request.principal)
        for attempt in range(1, ATTEMPTS + 1):
            runner, answer = self._app.take(hint), send
            if runner is None:
                arrived = clock.now()
                runner = await self._wait_for_runner(receive, hint, patience)
                if runner.birth is not None:
                    answer = runner.birth.watched(send, arrived)
            try:
                await self._exchange.forward(runner, receive, answer)
                return
            except RefusedError:
                if self._exchange.streamed or attempt == ATTEMPTS:
                    raise
            finally:
                if not self._exchange.released:
                    self._app.release(runner)

    async def _wait_for_runner(
        self, receive: Receive, hint: bytes | None, patience: float | None
    ) -> Runner:
        """Wait in line, no longer than the caller wants and a start and a request may take."""
        app, since = self._app, clock.now()
        waiter = app.enqueue(hint)
        gone = asyncio.ensure_future(self._disconnected(receive))
        longest = app.startup_timeout + app.request_timeout
        left = longest if patience is None else patience - (time.perf_counter() - self._started)
        try:
            await asyncio.wait(
                (waiter.granted, gone),
                timeout=min(left, longest),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if waiter.granted.done():
                runner: Runner = waiter.granted.result()
                self._request.trace.waited(since, runner)
                return runner
            if gone.done():
                raise ClientGoneError
            if left < longest:
                missed = start_deadline.missed(self._request.headers)
                raise StartDeadlineError(504, KIND, missed)
            raise SchedulingError(504, "startup_timeout", f"no runner was free in {longest:g} s")
        except BaseException:
            app.leave(waiter)
            raise
        finally:
            gone.cancel()

    async def _disconnected(self, receive: Receive) -> None:
        """Return when the caller goes away; never while it may still send its body."""
        if not self._exchange.received_all:
            await asyncio.Event().wait()
        await receive()
