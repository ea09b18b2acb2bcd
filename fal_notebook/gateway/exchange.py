"""One request between its caller and one runner: body and answer, streamed both ways."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from starlette.types import Receive, Scope, Send

from fal_notebook.gateway import errors, limits, trace_context
from fal_notebook.gateway.auth import Principal
from fal_notebook.gateway.fleet import Fleet, Runner, SchedulingError
from fal_notebook.gateway.headers import (
    HINTS,
    PREFERENCE,
    RAISED_STATUS,
    Header,
    hints,
    raised_status,
    request_head,
    response_headers,
)
from fal_notebook.gateway.storage.expiry import default_preference
from fal_notebook.gateway.tracing import UNTRACED, Trace
from fal_notebook.gateway.upstream import INCOMPLETE, Connection, RefusedError, UpstreamError
from fal_notebook.gateway.watch import Watch
from fal_notebook.runner.spec import LINK, SECRET, TOLD

# Read this much of a body before a runner is taken: a slow caller should not hold a slot.
READ_AHEAD = 64 * 1024
# A body for a server of the user's own may be live: no more than is there so soon is read ahead.
AT_ONCE = 0.01
# Of a server that does not say whether it wants the body: it gets it after so many seconds.
CONTINUE_AFTER = 1.0
# How long who lost a runner waits to hear how it ended (seconds).
LAST_WORD = 1.0
# A process that is being killed may close its port so long after its connections (seconds).
DYING = 0.1
STOP = b"x-fal-stop-runner"
CHECK = b"x-fal-runner-health-check"
_TRUE = (b"1", b"true", b"yes")


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
    trace: Trace = UNTRACED


class Exchange:
    """Reads a request's body, sends both to a runner, and the answer back.

    Parameters
    ----------
    live : bool
        The body goes on as it comes; it may be as slow as it likes within request_timeout.

    Attributes
    ----------
    status : int
        Of the answer; 0 until it begins.
    raised : int
        With what status a call from Python has failed that was answered; 0 when it has not.
    sent : bool
        A runner has been sent the whole request.
    released : bool
        The runner's slot was given back; only the caller is still waited for.
    streamed : bool
        Part of the body has been sent and is not kept: it cannot be sent again.
    trace : tuple of headers
        What the runner is told in place of the caller's trace, for it is the runner's parent.
    """

    def __init__(
        self,
        app: Fleet,
        request: Request,
        kill: Callable[[Runner, str], None],
        max_body: int,
        live: bool = False,
    ) -> None:
        self._app = app
        self._request = request
        self._kill = kill
        self._max_body = max_body
        self._live = live
        self.status = 0
        self.raised = 0
        self.sent = False
        self.released = False
        self.streamed = False
        self.trace: tuple[Header, ...] = ()
        self._body = b""
        self._more = True
        self._received = 0
        self._background: set[asyncio.Task[object]] = set()
        # A server of the user's own gets length, chunks and "100-continue" as they came.
        self._as_it_came = app.direct
        self._chunked = app.direct and b"transfer-encoding" in request.headers
        self._expects = app.direct and b"expect" in request.headers

    @property
    def beginning(self) -> bytes:
        """The body as far as it was read ahead; nothing of one that was streamed."""
        return self._body

    @property
    def received_all(self) -> bool:
        """Whether the body has been read to its end."""
        return not self._more

    # --- the request's body ------------------------------------------------------------------
    async def read_ahead(self, receive: Receive) -> None:
        """Read a small body to its end; who sends none of it must not hold its connection.

        Raises
        ------
        RefusedRequestError
            413 when it is too large, 408 when it does not come.
        """
        self._refuse_above_limit(int(self._request.headers.get(b"content-length", 0)))
        if self._expects:
            return  # the server says whether it wants the body
        task = asyncio.current_task()
        assert task is not None
        late = asyncio.Event()  # uvloop's timers may come before their time: it tells nothing

        def interrupt() -> None:
            late.set()
            task.cancel()

        patience = AT_ONCE if self._live else limits.BODY_STALL
        timer = asyncio.get_running_loop().call_later(patience, interrupt)
        try:
            while self._more and len(self._body) < READ_AHEAD:
                self._body += await self._next(receive)
        except asyncio.CancelledError:
            if not late.is_set():
                raise  # somebody else ends this request
            if self._live:
                return  # an interrupted `receive` has lost nothing
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

    # --- the exchange with the runner --------------------------------------------------------
    async def forward(self, runner: Runner, receive: Receive, send: Send) -> None:
        """Send the request to a runner whose slot is taken, and its answer on as it comes.

        A runner that is lost, works for too long or answers so is ended.

        Raises
        ------
        UpstreamError, SchedulingError, RefusedRequestError, ClientGoneError
        """
        with self._request.trace.attempt(self, runner):
            await self._forward(runner, receive, send)

    async def _forward(self, runner: Runner, receive: Receive, send: Send) -> None:
        task = asyncio.current_task()
        assert task is not None
        watch = Watch(
            task,
            receive,
            self._app.request_timeout,
            functools.partial(self._cancel, runner),
        )
        try:
            await self._exchange(runner, receive, send, watch)
        except UpstreamError as error:
            watch.end()
            self._blame(runner, error)
            raise await _judged(runner, error) from error
        except asyncio.CancelledError:
            if watch.client_gone and watch.answered:
                await self._let_go(runner, watch)
                raise ClientGoneError from None
            if not watch.timed_out:
                raise
            self._time_out(runner, watch)
        finally:
            watch.end()

    async def _exchange(self, runner: Runner, receive: Receive, send: Send, watch: Watch) -> None:
        connection = await runner.traffic.acquire()
        upload: asyncio.Future[None] | None = None
        try:
            wanted = await self._begin(connection, runner)
            # A server of the user's own sees by its closed connection that nobody waits.
            watch.answered = runner.direct is not None
            upload = await self._uploaded(connection, receive, watch, wanted)
            await _headed(connection, upload)
            watch.answered = True
            if watch.client_gone:
                raise ClientGoneError
            await self._send_response(connection, runner, send, watch)
        finally:
            await _ended(upload)
            runner.traffic.release(connection)
        self._look_after(runner, connection)

    def _look_after(self, runner: Runner, connection: Connection) -> None:
        """Heed what the answer says of its runner: its hints, and whether it is of use."""
        status = connection.status
        told = []
        known = status < 500
        for name, value in connection.headers:
            if name == STOP:
                told.append(value.lower() in _TRUE)
            elif name == TOLD:
                known = True
            elif name == RAISED_STATUS:
                self.raised = raised_status(value)
            elif name == CHECK and value.lower() in _TRUE:
                runner.check_now.set()
            elif name == HINTS:
                runner.hints = hints(value)
        if not known:
            given = self._request.headers.get(b"content-type", b"")
            where = self._request.path.decode("latin-1")
            errors.answered(self._app, status, where, self._request.id, self._body, given)
        if any(told):
            self._kill(runner, f"x-fal-stop-runner in the answer of request {self._request.id}")
        elif status == 503 and not told:
            self._kill(runner, f"the app answered request {self._request.id} with 503")
        elif status in (500, 502, 504):
            self._later(self._check(runner))

    def _blame(self, runner: Runner, error: UpstreamError) -> None:
        """End a runner that is lost; a server of the user's own may close what it likes."""
        if error.runner_lost and (runner.direct is None or isinstance(error, RefusedError)):
            self._kill(runner, str(error))
        elif error.runner_lost:
            self._later(self._check(runner))

    async def _check(self, runner: Runner) -> None:
        try:
            await runner.traffic.check()
        except RefusedError as error:
            self._kill(runner, str(error))

    def _later(self, work: Coroutine[Any, Any, object]) -> None:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _time_out(self, runner: Runner, watch: Watch) -> None:
        """Blame who is late: only a runner that works too long is ended."""
        if watch.with_caller or watch.body_expected:
            raise RefusedRequestError(408, "the caller kept the runner waiting for too long")
        self._kill(runner, f"request_timeout of request {self._request.id}")
        detail = f"the request took longer than request_timeout={self._app.request_timeout:g} s"
        raise SchedulingError(504, "request_timeout", detail)

    def _cancel(self, runner: Runner) -> None:
        """Tell the runner that nobody waits any more; its slot is free when it has answered."""
        if runner.direct is None:
            self._later(self._tell_of_cancel(runner))

    async def _tell_of_cancel(self, runner: Runner) -> None:
        """Call the app's own cancel route, if it has one; then end what can be ended."""
        await self.post(runner, b"/cancel")
        await self._tell(runner, b"cancel")

    async def _let_go(self, runner: Runner, watch: Watch) -> None:
        """Hold the slot until the runner has ended what it streams; a thread may go on a while."""
        if runner.direct is not None:
            if self._app.serves(self._below(b"/cancel"), "post"):
                self._later(self.post(runner, b"/cancel"))
            return
        try:
            self._later(self._tell_of_cancel(runner))
            await self._tell(runner, b"close the caller has gone")
        except asyncio.CancelledError:
            if not watch.timed_out:
                raise
            self._kill(runner, f"request_timeout of request {self._request.id}")

    async def _tell(self, runner: Runner, word: bytes) -> int:
        """Say something of this request over the runner's link; return the answer's status."""
        head = self._empty(runner, b"/", (LINK, word))
        return await runner.pool.notify(head)

    async def post(self, runner: Runner, path: bytes) -> None:
        """Post nothing to a path below the request's own, on its behalf."""
        await runner.traffic.notify(self._empty(runner, self._below(path)))

    def _below(self, path: bytes) -> bytes:
        return self._request.path.rstrip(b"/") + path

    def _empty(self, runner: Runner, target: bytes, *more: Header) -> bytes:
        """Return a request of ours: what the caller's says of its body is not true of it."""
        added = (b"content-length", b"0"), *more
        return self._head(runner, b"POST", target, *added, says_of_body=False)

    async def _begin(self, connection: Connection, runner: Runner) -> bool:
        """Send the request's head, with what is known of the body; say whether more is wanted."""
        scope = self._request.scope
        query, path = scope["query_string"], self._request.path
        target = path + b"?" + query if query else path
        method, added = scope["method"].encode(), self._framing()
        head = self._head(runner, method, target, *added, as_it_came=self._as_it_came)
        bodyless = scope["method"] == "HEAD"
        if not self._more and not self._chunked:
            connection.begin(head + self._body, bodyless)
            return False
        connection.begin(head, bodyless)
        return not self._expects or await connection.wants_body(CONTINUE_AFTER)

    async def _uploaded(
        self, connection: Connection, receive: Receive, watch: Watch, wanted: bool
    ) -> asyncio.Future[None] | None:
        """Send the body, or, of a live one, return who sends it while it is answered."""
        if wanted and self._live and self._more:
            return asyncio.ensure_future(self._upload(connection, receive, watch, wanted))
        await self._upload(connection, receive, watch, wanted)
        return None

    async def _upload(
        self, connection: Connection, receive: Receive, watch: Watch, wanted: bool
    ) -> None:
        """Send the body; when that is done, look whether the caller stays."""
        if wanted:
            try:
                await self._send_body(connection, receive, watch)
            except ClientGoneError:
                if not self._live:
                    raise
                watch.gone()
                return
        self.sent = True
        watch.begin()

    async def _send_body(self, connection: Connection, receive: Receive, watch: Watch) -> None:
        """Stream the body; a runner of ours that answers before its end gets no more of it."""
        self.streamed = self._more
        chunked = self._chunked or b"content-length" not in self._request.headers
        data = self._body
        if self._more:
            self._body = b""
        while await connection.send(_chunk(data) if chunked else data, self._live) and self._more:
            watch.expect_body(True, None if self._live else limits.BODY_STALL)
            data = await self._next(receive)
            watch.expect_body(False)
        if chunked and not self._more:
            await connection.send(b"0\r\n\r\n", self._live)

    def _head(
        self,
        runner: Runner,
        method: bytes,
        target: bytes,
        *more: Header,
        as_it_came: bool = False,
        says_of_body: bool = True,
    ) -> bytes:
        request = self._request
        user = request.principal.user if request.principal else ""
        added = (
            (b"x-fal-request-id", request.id.encode()),
            *(() if runner.direct else ((SECRET, runner.row.secret.encode()),)),
            *self._preference(),
            (b"x-fal-caller-user-id", user.encode()),
            (b"x-fal-endpoint", request.path),
            *self.trace,
            *more,
        )
        headers, kept = request.scope["headers"], request.principal is None
        if self.trace:
            headers = trace_context.without(headers)
        return request_head(method, target, headers, added, kept, as_it_came, says_of_body)

    def _preference(self) -> tuple[Header, ...]:
        """Tell an app how long files live by default, where its caller says nothing of it."""
        told = PREFERENCE in self._request.headers
        return () if told else ((PREFERENCE, default_preference()),)

    def _framing(self) -> tuple[Header, ...]:
        if self._as_it_came:
            return ((b"transfer-encoding", b"chunked"),) if self._chunked else ()
        if not self._more:
            return ((b"content-length", b"%d" % len(self._body)),)
        length = self._request.headers.get(b"content-length")
        return ((b"content-length", length) if length else (b"transfer-encoding", b"chunked"),)

    async def _send_response(
        self, connection: Connection, runner: Runner, send: Send, watch: Watch
    ) -> None:
        status, request_id = connection.status, self._request.id.encode()
        if self._request.scope["http_version"] == "1.0" and connection.endless:
            raise RefusedRequestError(505, "this answer is a stream: ask for it with HTTP/1.1")
        headers = response_headers(connection.headers, status, request_id)
        if self._expects and self._more:  # nobody knows whether the body still comes
            headers.append((b"connection", b"close"))
        self.status = status
        await send({"type": "http.response.start", "status": status, "headers": headers})
        while not connection.complete:
            data = await connection.read()
            watch.with_caller = True
            await send({"type": "http.response.body", "body": data, "more_body": True})
            watch.with_caller = False
        await send({"type": "http.response.body", "body": connection.take_rest()})


async def _headed(connection: Connection, upload: asyncio.Future[None] | None) -> None:
    """Wait for the answer's head, beside a body that may still be on its way."""
    if upload is None:
        await connection.head()
        return
    head = asyncio.ensure_future(connection.head())
    try:
        await asyncio.wait((head, upload), return_when=asyncio.FIRST_COMPLETED)
        if not head.done():
            upload.result()  # raises what the body could not be sent for
        await head
    finally:
        head.cancel()


async def _judged(runner: Runner, error: UpstreamError) -> UpstreamError:
    """Return a failure as what it is: a runner that lives cuts an answer when its app has failed.

    It has told so itself. Of one that does not live, how it ended is told.
    """
    if error.kind == INCOMPLETE and runner.direct is None:
        with contextlib.suppress(RefusedError):
            await runner.traffic.check()
            return UpstreamError("the app failed as it answered", 500, "runner_server_error")
    if error.kind in ("runner_disconnected", INCOMPLETE) and (how := await _ending(runner)):
        if how == str(error):  # it was ended for this very failure
            return error
        return UpstreamError(f"{error} ({how})", error.status, error.kind)
    return error


async def _ending(runner: Runner) -> str:
    """Return how a runner has ended; "" if that is not known soon, or it lives."""
    lives = asyncio.ensure_future(_seen_alive(runner))
    try:
        await asyncio.wait(
            (runner.how, lives), timeout=LAST_WORD, return_when=asyncio.FIRST_COMPLETED
        )
    finally:
        lives.cancel()
    return runner.how.result() if runner.how.done() else ""


async def _seen_alive(runner: Runner) -> None:
    """Return if a server of the user's own still accepts; runners of ours are lost here."""
    if runner.direct is not None:
        await asyncio.sleep(DYING)
        with contextlib.suppress(RefusedError):
            await runner.direct.check()
            return
    await asyncio.Event().wait()


async def _ended(upload: asyncio.Future[None] | None) -> None:
    """End a body of which no more is wanted."""
    if upload is not None and not upload.done():
        upload.cancel()
        await asyncio.wait((upload,))


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""
