"""The hot path: ``/run/{owner}/{app}[/path]`` from the caller to a runner and back, streamed."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

from fal_notebook.exceptions import UnauthorizedError
from fal_notebook.gateway.auth import Auth, Principal, may_run
from fal_notebook.gateway.fleet import Fleet, Runner, SchedulingError
from fal_notebook.gateway.replies import error_reply
from fal_notebook.gateway.upstream import Connection, UpstreamError
from fal_notebook.runner.frames import CONTENT_TYPE

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

# Read this much of a body before a runner is taken: a slow caller should not hold a slot.
READ_AHEAD = 64 * 1024
# A request that takes longer is watched for its caller going away.
WATCH_AFTER = 0.25

_HOP_BY_HOP = frozenset(
    (
        *(b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te"),
        *(b"trailer", b"transfer-encoding", b"upgrade", b"content-length", b"expect"),
    )
)
_CALLER_MAY_SET = frozenset(
    (
        *(b"x-fal-runner-hint", b"x-fal-queue-priority", b"x-fal-request-timeout"),
        *(b"x-fal-no-retry", b"x-fal-store-io", b"x-fal-object-lifecycle-preference"),
    )
)
_PICKLE = CONTENT_TYPE.encode()


class BodyTooLargeError(Exception):
    """The request's body is above the limit."""


class ClientGoneError(Exception):
    """The caller closed its connection."""


class Proxy:
    """The ASGI callable for ``/run``.

    Parameters
    ----------
    find : callable
        Gives the fleet of an owner and a name that has an active revision, or None.
    kill : callable
        Ends a runner at once: ``kill(fleet, runner, cause)``.
    max_body : int
        Largest request body in bytes.
    """

    def __init__(
        self,
        find: Callable[[str, str], Fleet | None],
        auth: Auth,
        kill: Callable[[Fleet, Runner, str], None],
        max_body: int,
    ) -> None:
        self._find = find
        self._auth = auth
        self._kill = kill
        self._max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        request_id = os.urandom(16).hex()
        parts = scope["raw_path"].split(b"/", 4)  # "", run, owner, app, path
        if len(parts) < 4:
            await error_reply(404, "the path is /run/{owner}/{app}", request_id)(send)
            return
        app = self._find(parts[2].decode("latin-1"), parts[3].decode("latin-1"))
        headers = dict(scope["headers"])
        refusal, principal = self._admit(app, headers)
        if refusal is not None or app is None:
            status, detail = refusal or (404, "no such app")
            await error_reply(status, detail, request_id)(send)
            return
        path = b"/" + (parts[4] if len(parts) > 4 else b"")
        exchange = Exchange(self, app, scope, headers, principal, path, request_id)
        await exchange.run(receive, send)

    def _admit(
        self, app: Fleet | None, headers: dict[bytes, bytes]
    ) -> tuple[tuple[int, str] | None, Principal | None]:
        """Return the refusal (status, detail) if there is one, and who calls."""
        is_open = app is not None and app.serve and app.auth == "public"
        try:
            principal = self._auth.identify(headers.get(b"authorization"))
        except UnauthorizedError as error:
            if not is_open:
                return (401, str(error)), None
            principal = None
        if app is None:
            return (404, "no such app"), principal
        status = may_run(principal, app.owner, app.auth, app.serve)
        if status:
            return (status, _WHY[status]), principal
        if headers.get(b"content-type") == _PICKLE and not (principal and principal.sends_python):
            return (415, "Python values are taken from the app's owner only; send JSON"), principal
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._max_body:
            return (413, _too_large(self._max_body)), principal
        return None, principal

    def failed(self, app: Fleet, runner: Runner, cause: str) -> None:
        """End a runner that did not answer."""
        self._kill(app, runner, cause)

    @property
    def max_body(self) -> int:
        """Largest request body in bytes."""
        return self._max_body


_WHY = {
    401: "this app needs a key: send 'Authorization: Key id:secret'",
    403: "this key may not call this app",
}


def _too_large(limit: int) -> str:
    return f"the request body is above max_body={limit} bytes"


class Exchange:
    """One request on its way through the gateway."""

    def __init__(
        self,
        proxy: Proxy,
        app: Fleet,
        scope: Scope,
        headers: dict[bytes, bytes],
        principal: Principal | None,
        path: bytes,
        request_id: str,
    ) -> None:
        self._proxy = proxy
        self._app = app
        self._scope = scope
        self._headers = headers
        self._principal = principal
        self._path = path
        self._request_id = request_id
        self._started = time.perf_counter()
        self._status = 0
        self._body = b""
        self._more = True
        self._received = 0

    async def run(self, receive: Receive, send: Send) -> None:
        """Take a slot, forward, count; every failure becomes one answer of ours."""
        self._app.metrics.received.inc()
        try:
            await self._read_ahead(receive)
            runner = self._app.take() or await self._wait_for_runner(receive)
            try:
                await self._forward(runner, receive, send)
            finally:
                self._app.release(runner)
        except ClientGoneError:
            self._status = 499
        except BodyTooLargeError:
            await self._refuse(send, 413, _too_large(self._proxy.max_body), "bad_request")
        except SchedulingError as error:
            await self._refuse(send, error.status, str(error), error.kind)
        finally:
            self._app.metrics.complete(self._status, time.perf_counter() - self._started)

    async def _refuse(self, send: Send, status: int, detail: str, kind: str) -> None:
        """Answer in the platform's own shape, unless the response has begun already."""
        if self._status:
            raise ConnectionError(detail)  # uvicorn closes the connection: the caller sees a cut
        self._status = status
        await error_reply(status, detail, self._request_id, kind)(send)

    # --- the request's body ------------------------------------------------------------------
    async def _read_ahead(self, receive: Receive) -> None:
        while self._more and len(self._body) < READ_AHEAD:
            self._body += await self._next(receive)

    async def _rest(self, receive: Receive) -> AsyncIterator[bytes]:
        while self._more:
            yield await self._next(receive)

    async def _next(self, receive: Receive) -> bytes:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        self._more = message.get("more_body", False)
        chunk: bytes = message.get("body", b"")
        self._received += len(chunk)
        if self._received > self._proxy.max_body:
            raise BodyTooLargeError
        return chunk

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
        timeout = self._app.request_timeout
        task = asyncio.current_task()
        assert task is not None
        watch = Watch(task, receive, timeout)
        connection: Connection | None = None
        try:
            connection = await runner.pool.acquire()
            await self._send_request(connection, runner, receive)
            watch.begin()
            await self._send_response(connection, runner, send)
        except asyncio.CancelledError:
            if watch.client_gone:
                raise ClientGoneError from None
            if not watch.timed_out:
                raise
            self._proxy.failed(self._app, runner, "request_timeout")
            detail = f"the request took longer than request_timeout={timeout:g} s"
            await self._refuse(send, 504, detail, "request_timeout")
        except UpstreamError as error:
            kind = "runner_incomplete_response" if error.answered else "runner_disconnected"
            await self._refuse(send, 502 if error.answered else 503, str(error), kind)
        finally:
            watch.end()
            if connection is not None:
                runner.pool.release(connection)

    async def _send_request(self, connection: Connection, runner: Runner, receive: Receive) -> None:
        head = self._head(runner)
        if not self._more:
            connection.begin(head + self._body, bodyless=self._scope["method"] == "HEAD")
            return
        connection.begin(head)
        chunked = b"content-length" not in self._headers
        await connection.send(_chunk(self._body) if chunked else self._body)
        async for data in self._rest(receive):
            await connection.send(_chunk(data) if chunked else data)
        if chunked:
            await connection.send(b"0\r\n\r\n")

    def _head(self, runner: Runner) -> bytes:
        scope = self._scope
        query = scope["query_string"]
        target = self._path + b"?" + query if query else self._path
        lines = [scope["method"].encode() + b" " + target + b" HTTP/1.1"]
        for name, value in scope["headers"]:
            if name in _HOP_BY_HOP or (name[:6] == b"x-fal-" and name not in _CALLER_MAY_SET):
                continue
            if name == b"authorization" and self._principal is not None:
                continue
            lines.append(name + b": " + value)
        user = self._principal.user if self._principal else ""
        lines += (
            b"x-fal-request-id: " + self._request_id.encode(),
            b"x-fal-runner-secret: " + runner.row.secret.encode(),
            b"x-fal-caller-user-id: " + user.encode("latin-1"),
            b"x-fal-endpoint: " + self._path,
            self._framing(),
        )
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def _framing(self) -> bytes:
        if not self._more:
            return b"content-length: %d" % len(self._body)
        length = self._headers.get(b"content-length")
        return b"content-length: " + length if length else b"transfer-encoding: chunked"

    async def _send_response(self, connection: Connection, runner: Runner, send: Send) -> None:
        await connection.head()
        headers = [
            (name, value)
            for name, value in connection.headers
            if name not in _HOP_BY_HOP or name == b"content-length"
        ]
        headers.append((b"x-fal-request-id", self._request_id.encode()))
        self._status = connection.status
        await send({"type": "http.response.start", "status": connection.status, "headers": headers})
        while not connection.complete:
            data = await connection.read()
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": connection.take_rest()})
        if connection.status == 503:
            self._proxy.failed(self._app, runner, "the app answered 503")


class Watch:
    """Cancels an exchange that takes too long or whose caller has gone; free for a short one."""

    def __init__(self, task: asyncio.Task[Any], receive: Receive, timeout: float) -> None:
        self.timed_out = False
        self.client_gone = False
        self._task = task
        self._receive = receive
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(timeout, self._time_out)
        self._delay: asyncio.TimerHandle | None = None
        self._watching: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Start to look for the caller going away; the request's body has been read."""
        self._delay = self._loop.call_later(WATCH_AFTER, self._watch)

    def end(self) -> None:
        """Stop watching."""
        self._timer.cancel()
        if self._delay is not None:
            self._delay.cancel()
        if self._watching is not None:
            self._watching.cancel()

    def _time_out(self) -> None:
        self.timed_out = True
        self._task.cancel()

    def _watch(self) -> None:
        self._watching = asyncio.ensure_future(self._until_gone())

    async def _until_gone(self) -> None:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.client_gone = True
            self._task.cancel()


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""
