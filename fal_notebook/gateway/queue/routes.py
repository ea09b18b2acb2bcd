"""``/queue/{owner}/{app}…`` over HTTP: submit, status, status stream, result, cancel."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from starlette.types import Receive, Scope, Send

from fal_notebook import settings
from fal_notebook.exceptions import DiskFullError, FalNotebookError, WebhookUrlError
from fal_notebook.gateway.admission import Admission, Admitted, RefusedCallerError
from fal_notebook.gateway.auth import SEND_KEY, Principal, is_owner, may_see
from fal_notebook.gateway.exchange import ClientGoneError, RefusedRequestError
from fal_notebook.gateway.fleet import Fleet
from fal_notebook.gateway.queue import status, submission
from fal_notebook.gateway.queue.queue import Queue
from fal_notebook.gateway.queue.table import COMPLETED, QueuedRequest
from fal_notebook.gateway.replies import error_reply, json_reply
from fal_notebook.gateway.webhooks import targets
from fal_notebook.log_lines import untold

# A status stream looks this often for what nobody announces: position and log lines.
STREAM_PERIOD = 0.25
# It sends a comment when it had nothing to say for so long.
KEEPALIVE = 15.0

_REQUEST = re.compile(rb"/requests/([0-9a-f]{1,64})(/status|/status/stream|/cancel)?/?")

Logs = Callable[[QueuedRequest], Awaitable[list[dict[str, Any]]]]


class _UnknownRequestError(RefusedRequestError):
    def __init__(self) -> None:
        super().__init__(404, "no such request")


@dataclass(frozen=True)
class _Asked:
    """A request that is asked about, by whom, and its app; None of one that was deleted."""

    request: QueuedRequest
    principal: Principal | None
    fleet: Fleet | None

    @property
    def may_see_logs(self) -> bool:
        private = self.fleet is None or self.fleet.private_logs
        return not private or is_owner(self.principal, self.request.owner)

    @property
    def position(self) -> int:
        if self.fleet is None:
            return 0
        return self.fleet.waiting.backlog.position(self.request.number) or 0


class QueueRoutes:
    """The ASGI callable for ``/queue``.

    Parameters
    ----------
    logs : callable
        Gives the log lines of a request.
    max_body : int
        Largest request body in bytes.
    """

    def __init__(self, queue: Queue, admission: Admission, logs: Logs, max_body: int) -> None:
        self._queue = queue
        self._records = queue.records
        self._admission = admission
        self._logs = logs
        self._max_body = max_body
        self._arriving: set[str] = set()
        self._webhook_allow = settings.setting("webhook_allow", "")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        parts = scope["raw_path"].split(b"/", 4)  # "", queue, owner, app, path
        try:
            if len(parts) < 4:
                raise RefusedRequestError(404, "the path is /queue/{owner}/{app}")
            path = b"/" + (parts[4] if len(parts) > 4 else b"")
            await self._dispatch(scope, receive, send, (parts[2], parts[3]), path)
        except ClientGoneError:
            pass
        except _UnknownRequestError as error:
            is_cancel = scope["raw_path"].rstrip(b"/").endswith(b"/cancel")
            more = {"status": "NOT_FOUND"} if is_cancel else {}
            await error_reply(error.status, str(error), more=more)(send)
        except (RefusedCallerError, RefusedRequestError) as error:
            await error_reply(error.status, str(error))(send)
        except WebhookUrlError as error:
            await error_reply(422, str(error))(send)
        except DiskFullError as error:
            await error_reply(507, str(error), kind="internal_error")(send)
        except FalNotebookError as error:
            await error_reply(500, str(error), kind="internal_error")(send)

    async def _dispatch(
        self, scope: Scope, receive: Receive, send: Send, app: tuple[bytes, bytes], path: bytes
    ) -> None:
        found = _REQUEST.fullmatch(path)
        if found is None:
            await self._other(scope, receive, send, app, path)
            return
        asked = self._asked(scope, app, found[1].decode())
        verb = found[2] or b""
        if scope["method"] != ("PUT" if verb == b"/cancel" else "GET"):
            raise RefusedRequestError(405, "cancel with PUT, all else with GET")
        act = {
            b"": self._result,
            b"/status": self._status,
            b"/status/stream": self._stream,
            b"/cancel": self._cancel,
        }[verb]
        await act(scope, receive, send, asked)

    async def _other(
        self, scope: Scope, receive: Receive, send: Send, app: tuple[bytes, bytes], path: bytes
    ) -> None:
        """Take a request in, or refuse what is none."""
        admitted = self._admission.admit(*app, dict(scope["headers"]))
        if path.startswith(b"/requests/"):
            raise _UnknownRequestError
        if scope["method"] != "POST":
            raise RefusedRequestError(405, "submit with POST")
        await self._submit(scope, receive, send, admitted, path)

    def _asked(self, scope: Scope, app: tuple[bytes, bytes], request_id: str) -> _Asked:
        """Return the request that is asked about; those of a deleted app are still answered.

        401 tells a handle that it has the token of an earlier gateway.
        """
        headers = dict(scope["headers"])
        fleet, principal = self._admission.recognise(*app, headers)
        request = self._records.find(request_id)
        shown = request is not None and _is_shown(request, app, principal)
        if fleet is not None or not shown:
            self._admission.let_in(fleet, principal, headers)
        if request is not None and shown:
            return _Asked(request, principal, fleet)
        if principal is None and b"authorization" in headers:
            raise RefusedRequestError(
                401, f"the Authorization header is not valid here: {SEND_KEY}"
            )
        raise _UnknownRequestError

    # --- submit ------------------------------------------------------------------------------
    async def _submit(
        self, scope: Scope, receive: Receive, send: Send, admitted: Admitted, path: bytes
    ) -> None:
        app, headers = admitted.app, dict(scope["headers"])
        request = submission.read(scope, headers, path, admitted, self._records.number())
        known = self._records.find(request.id) if b"x-fal-submit-id" in headers else None
        if known is not None or request.id in self._arriving:
            await self._tell_again(scope, receive, send, admitted, known)
            return
        if request.webhook:
            await targets.check(request.webhook, self._webhook_allow)
        with self._queue.tracing.submit(app, scope, request):
            position = await self._accept(scope, receive, app, request)
        told = status.submitted(request, _base(scope), position)
        await json_reply(told, request.id)(send)

    async def _accept(
        self, scope: Scope, receive: Receive, app: Fleet, request: QueuedRequest
    ) -> int:
        """Take a request in with its body; return its position."""
        limit = submission.max_queue_length(scope)
        if limit is not None and len(app.waiting.backlog) >= limit:
            detail = f"{len(app.waiting.backlog)} requests wait, and fal_max_queue_length={limit}"
            raise RefusedRequestError(429, detail)
        spool = self._records.spool(request.id)
        self._arriving.add(request.id)
        try:
            announced = int(dict(scope["headers"]).get(b"content-length", 0))
            body = await self._read(receive, spool, announced)
            await self._queue.submit(app, request, body)
        except BaseException:
            spool.discard()
            raise
        finally:
            self._arriving.discard(request.id)
        return app.waiting.backlog.position(request.number) or 0

    async def _tell_again(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        admitted: Admitted,
        known: QueuedRequest | None,
    ) -> None:
        """Answer a submit that comes twice, because its caller got no answer, as the first."""
        app = admitted.app
        at = app.owner.encode(), app.name.encode()
        if known is None or not _is_shown(known, at, admitted.principal):
            raise RefusedRequestError(409, "a request of this x-fal-submit-id is there or comes")
        position = app.waiting.backlog.position(known.number) or 0
        told = status.submitted(known, _base(scope), position)
        await json_reply(told, known.id)(send)  # its body is not needed

    async def _read(self, receive: Receive, spool: Any, announced: int) -> bytes | None:
        self._refuse_above_limit(announced)
        received, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            piece = message.get("body", b"")
            received += len(piece)
            self._refuse_above_limit(received)
            await spool.write(piece)
            more = message.get("more_body", False)
        content: bytes | None = await spool.finish()
        return content

    def _refuse_above_limit(self, length: int) -> None:
        if length > self._max_body:
            detail = f"the request body is above max_body={self._max_body} bytes"
            raise RefusedRequestError(413, detail)

    # --- what became of it -------------------------------------------------------------------
    async def _status(self, scope: Scope, receive: Receive, send: Send, asked: _Asked) -> None:
        """Answer 202 until it is completed, then 200: fal's clients look at nothing else."""
        told = await self._tell(scope, asked, submission.wants_logs(scope))
        code = 200 if asked.request.state == COMPLETED else 202
        await json_reply(told, asked.request.id, code)(send)

    async def _tell(self, scope: Scope, asked: _Asked, wanted: bool) -> dict[str, Any]:
        shown = asked.may_see_logs
        logs = (await self._logs(asked.request) if shown else []) if wanted else None
        return status.status(asked.request, _base(scope), asked.position, logs)

    async def _stream(self, scope: Scope, receive: Receive, send: Send, asked: _Asked) -> None:
        """Send the status whenever it is another one, as server-sent events, until the end."""
        wanted = submission.wants_logs(scope)
        headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        gone = asyncio.ensure_future(_gone(receive))
        last: dict[str, Any] = {}
        silent = 0.0
        try:
            while not gone.done():
                told = await self._tell(scope, asked, wanted)
                if told != last:
                    # fal's clients add the lines of all events up.
                    logs = told.get("logs")
                    new = logs and untold(last.get("logs") or [], logs)
                    news = json.dumps({**told, "logs": new})
                    await _event(send, b"data: " + news.encode())
                    last, silent = told, 0.0
                if asked.request.state == COMPLETED:
                    break
                if silent >= KEEPALIVE:
                    await _event(send, b": keep-alive")
                    silent = 0.0
                silent += STREAM_PERIOD
                await self._queue.followers.changed(asked.request.number, STREAM_PERIOD)
                if (request := self._records.find(asked.request.id)) is None:
                    break
                asked = replace(asked, request=request)
        finally:
            gone.cancel()
        await send({"type": "http.response.body"})

    async def _result(self, scope: Scope, receive: Receive, send: Send, asked: _Asked) -> None:
        """Send the app's own status, headers and body."""
        request = asked.request
        if request.state != COMPLETED:
            detail = f"the request is not completed yet, it is {request.state}"
            await error_reply(400, detail, request.id, more={"status": request.state})(send)
            return
        answer = self._records.answer(request)
        size, pieces = self._records.answer_content(request, answer)
        hidden = (b"content-length", b"x-fal-request-id")
        length = [] if answer.status in (204, 304) else [(b"content-length", b"%d" % size)]
        headers = [
            *((name, value) for name, value in answer.headers if name not in hidden),
            *length,
            (b"x-fal-request-id", request.id.encode()),
        ]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        async for piece in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body"})

    async def _cancel(self, scope: Scope, receive: Receive, send: Send, asked: _Asked) -> None:
        if await self._queue.cancel(asked.fleet, asked.request):
            await json_reply({"status": "CANCELLATION_REQUESTED"}, asked.request.id, 202)(send)
        else:
            # fal's clients show the detail and nothing else.
            detail = "ALREADY_COMPLETED: the request is completed"
            more = {"status": "ALREADY_COMPLETED"}
            await error_reply(400, detail, asked.request.id, more=more)(send)


def _is_shown(
    request: QueuedRequest, app: tuple[bytes, bytes], principal: Principal | None
) -> bool:
    """Say whether a request is one of this app, and of this caller or the app's owner's to see."""
    is_of_app = (request.owner.encode(), request.app.encode()) == app
    return is_of_app and may_see(principal, request.owner, request.user)


async def _gone(receive: Receive) -> None:
    """Return when the caller closes its connection, or sends a body too slowly."""
    with contextlib.suppress(RefusedRequestError):
        while (await receive())["type"] != "http.disconnect":
            pass


async def _event(send: Send, data: bytes) -> None:
    await send({"type": "http.response.body", "body": data + b"\n\n", "more_body": True})


def _base(scope: Scope) -> str:
    host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
    return f"{scope['scheme']}://{host}/queue"
