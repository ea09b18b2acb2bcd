"""How one request is answered: by the route that it names, or as what is no call of a route."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_json
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from fal_notebook.runner import frames
from fal_notebook.runner.answers import Call, answer
from fal_notebook.runner.caller import Caller, Callers
from fal_notebook.runner.fastapi_route import FastApiRoute
from fal_notebook.runner.refusals import cancelled, error_response
from fal_notebook.runner.route import Route
from fal_notebook.runner.runs import Run
from fal_notebook.runner.served import Served

Headers = dict[bytes, bytes]


def request_id(headers: Headers) -> str:
    """Return the id of a request, "" of one that has none."""
    return headers.get(b"x-fal-request-id", b"").decode("latin-1")


@dataclass(frozen=True)
class Asked:
    """A request to what is served, and who waits for each."""

    served: Served
    callers: Callers
    scope: Scope
    headers: Headers
    receive: Receive

    async def respond(self) -> Any:
        """Return the response, None when the caller has gone before its request was read."""
        route = self.served.find(self.scope["path"])
        if route is None or self.scope["method"] != "POST":
            return await self._other()
        body = await _body(self.receive)
        if body is None:
            return None
        pickled = self.headers.get(b"content-type") == frames.CONTENT_TYPE.encode()
        if isinstance(route, FastApiRoute):
            return functools.partial(self._from_fastapi, route, body, pickled)
        if not route.is_async:
            run = Run((self._id, self.scope["path"]), body, self.receive)
            make = functools.partial(self._from_thread, route, body, pickled)
            return await self.callers.runs.answer(run, make)
        return await self._unless_gone(route, body, pickled)

    async def _from_thread(self, route: Route, body: bytes, pickled: bool) -> Response:
        if route.workers.slot.locked():
            return await self._unless_gone(route, body, pickled)
        nobody = asyncio.get_running_loop().create_future()  # a thread cannot be stopped
        with self.callers.known(self._id, nobody):
            return await answer(route, Call(self.scope, body, self.receive), pickled)

    async def _unless_gone(self, route: Route, body: bytes, pickled: bool) -> Response:
        caller = Caller(self.receive)
        with self.callers.known(self._id, caller.gone):
            call = Call(self.scope, body, caller.receive)
            return await _unless_gone(route, call, pickled, caller)

    @property
    def _id(self) -> str:
        return request_id(self.headers)

    async def _from_fastapi(
        self,
        route: FastApiRoute,
        body: bytes,
        pickled: bool,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        """Have FastAPI answer, unless the caller goes."""
        caller = Caller(receive)
        respond = route.answer(Call(scope, body, caller.receive), pickled)
        work = asyncio.ensure_future(respond(scope, caller.receive, send))
        try:
            with self.callers.known(self._id, caller.gone):
                if await caller.outlasts(work, asks=True):
                    work.result()
                    return
            work.cancel()
            await asyncio.wait((work,))
            with contextlib.suppress(RuntimeError):  # the answer has begun
                await cancelled()(scope, receive, send)
        finally:
            caller.gone.cancel()
            work.cancel()

    async def _other(self) -> Response:
        """Answer what is no call of a route."""
        served, path = self.served, self.scope["path"]
        if served.find(path) is not None and path != "/health":
            return error_response(405, "Method Not Allowed", {"allow": "POST"})
        if path == "/health":
            return await _health(served)
        if path == "/openapi.json":
            return Response(to_json(served.openapi()), media_type="application/json")
        if served.socket(path) is not None:
            detail = f"Path {path} is a WebSocket: ask for it with wss:// or ws://"
            return error_response(426, detail)
        return error_response(404, f"Path {path} not found")


async def _health(served: Served) -> Response:
    try:
        content = to_json(await served.health(), fallback=str)
    except Exception as error:
        served.reports.report(error)
        return error_response(500, "the app's health() raised an error; its log has it")
    return Response(content, media_type="application/json")


async def _body(receive: Receive) -> bytes | None:
    chunks = []
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        chunks.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(chunks)


async def _unless_gone(route: Route, call: Call, pickled: bool, caller: Caller) -> Response:
    """Cancel an async function when its caller goes away, and what waits for its turn.

    A thread could not be stopped: the function goes on.
    """
    answering = asyncio.ensure_future(answer(route, call, pickled))
    try:
        if not route.is_async:
            await asyncio.wait((answering, caller.gone), return_when=asyncio.FIRST_COMPLETED)
            if answering not in route.workers.waiting:
                return await answering
        if await caller.outlasts(answering, asks=route.signature.request is not None):
            return cancelled() if answering.cancelled() else answering.result()
        answering.cancel()
        await asyncio.wait((answering,))
        return cancelled()
    finally:
        caller.gone.cancel()
        answering.cancel()
