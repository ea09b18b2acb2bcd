"""One request on its way through the gateway: body, slot, runner, answer; streamed both ways."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import Receive, Scope, Send

from fal_notebook.gateway.auth import Principal
from fal_notebook.gateway.fleet import Fleet, Runner, SchedulingError
from fal_notebook.gateway.headers import Header, request_head, response_headers
from fal_notebook.gateway.replies import error_reply, refuse
from fal_notebook.gateway.upstream import Connection, RefusedError, UpstreamError
from fal_notebook.gateway.watch import UPLOAD_STALL, Watch
from fal_notebook.runner.spec import LINK

# Read this much of a body before a runner is taken: a slow caller should not hold a slot.
READ_AHEAD = 64 * 1024
# So many runners that do not accept are tried; nothing was sent to them, so that is safe.
ATTEMPTS = 4

log = logging.getLogger(__name__)


class RefusedRequestError(Exception):
    """The request is refused for what it is: status and detail."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class ClientGoneError(Exception):
    """The caller closed its connection."""


@dataclass(frozen=True)
class Request:
    """What is known of a request before its body is read."""

    scope: Scope
    headers: dict[bytes, bytes]
    path: bytes
    id: str
    principal: Principal | None


class Exchange:
    """One request, from its first body byte to its last answer byte."""

    def __init__(
        self,
        app: Fleet,
        request: Request,
        kill: Callable[[Runner, str], None],
        max_body: int,
    ) -> None:
        self._app = app
        self._request = request
        self._kill = kill
        self._max_body = max_body
        self._started = time.perf_counter()
        self._status = 0
        self._body = b""
        self._more = True
        self._received = 0
        self._sent = False  # part of the body has been streamed away: it cannot be sent again
        self._cancelling: asyncio.Task[None] | None = None

    async def run(self, receive: Receive, send: Send) -> None:
        """Take a slot, forward, count; every failure becomes one answer of ours."""
        self._app.metrics.received.inc()
        try:
            self._refuse_above_limit(int(self._request.headers.get(b"content-length", 0)))
            await self._read_ahead(receive)
            await self._attempt(receive, send)
        except ClientGoneError:
            self._status = 499
        except RefusedRequestError as error:
            await self._refuse(receive, send, error.status, str(error), "bad_request")
        except SchedulingError as error:
            principal = self._request.principal
            detail = error.for_owner if principal and principal.controls else str(error)
            await self._refuse(receive, send, error.status, detail, error.kind)
        except UpstreamError as error:
            await self._refuse(receive, send, error.status, str(error), error.kind)
        except Exception:
            log.exception("request %s", self._request.id)
            await self._refuse(
                receive, send, 500, "internal error of the gateway", "internal_error"
            )
        finally:
            self._app.metrics.complete(self._status, time.perf_counter() - self._started)

    async def _refuse(
        self, receive: Receive, send: Send, status: int, detail: str, kind: str
    ) -> None:
        """Answer in the platform's own shape; a response that has begun is cut instead."""
        begun, self._status = self._status, status
        reply = error_reply(status, detail, self._request.id, kind)
        if not begun and self._more:
            await refuse(reply, receive, send)
        elif not begun:
            await reply(send)

    async def _attempt(self, receive: Receive, send: Send) -> None:
        """Give the request to a runner; one that does not accept is ended and another taken."""
        for attempt in range(1, ATTEMPTS + 1):
            runner = self._app.take() or await self._wait_for_runner(receive)
            try:
                await self._forward(runner, receive, send)
                return
            except UpstreamError as error:
                if error.runner_lost:
                    self._kill(runner, str(error))
                if not isinstance(error, RefusedError) or self._sent or attempt == ATTEMPTS:
                    raise
            finally:
                self._app.release(runner)

    # --- the request's body ------------------------------------------------------------------
    async def _read_ahead(self, receive: Receive) -> None:
        """Read a small body to its end; who sends none of it must not hold its connection."""
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()
        timer = loop.call_later(UPLOAD_STALL, task.cancel)
        try:
            while self._more and len(self._body) < READ_AHEAD:
                self._body += await self._next(receive)
        except asyncio.CancelledError:
            if loop.time() < timer.when():
                raise  # somebody else ends this request
            raise RefusedRequestError(408, "the body did not come in time") from None
        finally:
            timer.cancel()

    async def _next(self, receive: Receive) -> bytes:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        self._more = message.get("more_body", False)
        chunk: bytes = message.get("body", b"")
        self._received += len(chunk)
        self._refuse_above_limit(self._received)
        return chunk

    def _refuse_above_limit(self, length: int) -> None:
        if length > self._max_body:
            detail = f"the request body is above max_body={self._max_body} bytes"
            raise RefusedRequestError(413, detail)

    # --- the slot ----------------------------------------------------------------------------
    async def _wait_for_runner(self, receive: Receive) -> Runner:
        """Wait in line, no longer than a start and a request may take."""
        app = self._app
        waiter = app.enqueue()
        gone = asyncio.ensure_future(self._disconnected(receive))
        patience = app.startup_timeout + app.request_timeout
        try:
            await asyncio.wait(
                (waiter.granted, gone), timeout=patience, return_when=asyncio.FIRST_COMPLETED
            )
            if waiter.granted.done():
                return waiter.granted.result()
            if gone.done():
                raise ClientGoneError
            raise SchedulingError(504, "startup_timeout", f"no runner was free in {patience:g} s")
        except BaseException:
            app.leave(waiter)
            raise
        finally:
            gone.cancel()

    async def _disconnected(self, receive: Receive) -> None:
        """Return when the caller goes away; never while it may still send its body."""
        if self._more:
            await asyncio.Event().wait()
        await receive()

    # --- the exchange with the runner --------------------------------------------------------
    async def _forward(self, runner: Runner, receive: Receive, send: Send) -> None:
        task = asyncio.current_task()
        assert task is not None
        timeout = self._app.request_timeout
        watch = Watch(task, receive, timeout, functools.partial(self._cancel, runner))
        connection: Connection | None = None
        try:
            connection = await runner.pool.acquire()
            await self._send_request(connection, runner, receive, watch)
            watch.begin()
            await connection.head()
            watch.answered = True
            if watch.client_gone:
                raise ClientGoneError
            await self._send_response(connection, runner, send, watch)
        except asyncio.CancelledError:
            if watch.client_gone and watch.answered:
                raise ClientGoneError from None
            if not watch.timed_out:
                raise
            self._time_out(runner, watch)
        finally:
            watch.end()
            if connection is not None:
                runner.pool.release(connection)

    def _time_out(self, runner: Runner, watch: Watch) -> None:
        """Blame who is late: only a runner that works too long is ended."""
        if watch.with_caller:
            raise RefusedRequestError(408, "the caller kept the runner waiting for too long")
        self._kill(runner, "request_timeout")
        detail = f"the request took longer than request_timeout={self._app.request_timeout:g} s"
        raise SchedulingError(504, "request_timeout", detail)

    def _cancel(self, runner: Runner) -> None:
        """Tell the runner that nobody waits any more; its slot is free when it has answered."""
        head = self._head(runner, b"POST", b"/", (b"content-length", b"0"), (LINK, b"cancel"))
        self._cancelling = asyncio.ensure_future(runner.pool.notify(head))

    async def _send_request(
        self, connection: Connection, runner: Runner, receive: Receive, watch: Watch
    ) -> None:
        scope = self._request.scope
        query, path = scope["query_string"], self._request.path
        target = path + b"?" + query if query else path
        head = self._head(runner, scope["method"].encode(), target, self._framing())
        bodyless = scope["method"] == "HEAD"
        if self._more:
            connection.begin(head, bodyless)
            await self._send_body(connection, receive, watch)
        else:
            connection.begin(head + self._body, bodyless)

    async def _send_body(self, connection: Connection, receive: Receive, watch: Watch) -> None:
        """Stream the body; a runner that answers before its end gets no more of it."""
        self._sent = True
        chunked = b"content-length" not in self._request.headers
        data, self._body = self._body, b""
        while await connection.send(_chunk(data) if chunked else data) and self._more:
            watch.expect_body(True)
            data = await self._next(receive)
            watch.expect_body(False)
        if chunked and not self._more:
            await connection.send(b"0\r\n\r\n")

    def _head(self, runner: Runner, method: bytes, target: bytes, *more: Header) -> bytes:
        request = self._request
        user = request.principal.user if request.principal else ""
        added = (
            (b"x-fal-request-id", request.id.encode()),
            (b"x-fal-runner-secret", runner.row.secret.encode()),
            (b"x-fal-caller-user-id", user.encode()),
            (b"x-fal-endpoint", request.path),
            *more,
        )
        return request_head(
            method, target, request.scope["headers"], added, request.principal is None
        )

    def _framing(self) -> Header:
        if not self._more:
            return b"content-length", b"%d" % len(self._body)
        length = self._request.headers.get(b"content-length")
        return (b"content-length", length) if length else (b"transfer-encoding", b"chunked")

    async def _send_response(
        self, connection: Connection, runner: Runner, send: Send, watch: Watch
    ) -> None:
        status, request_id = connection.status, self._request.id.encode()
        if self._request.scope["http_version"] == "1.0" and connection.endless:
            raise RefusedRequestError(505, "this answer is a stream: ask for it with HTTP/1.1")
        headers = response_headers(connection.headers, status, request_id)
        self._status = status
        await send({"type": "http.response.start", "status": status, "headers": headers})
        while not connection.complete:
            data = await connection.read()
            watch.with_caller = True
            await send({"type": "http.response.body", "body": data, "more_body": True})
            watch.with_caller = False
        await send({"type": "http.response.body", "body": connection.take_rest()})
        if status == 503 and (b"x-fal-stop-runner", b"0") not in connection.headers:
            self._kill(runner, "the app answered 503")


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""
