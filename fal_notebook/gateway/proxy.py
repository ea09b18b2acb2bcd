"""The hot path's entrance, ``/run/{owner}/{app}[/path]``: find the app, admit the caller."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

from starlette.types import Receive, Scope, Send

from fal_notebook.exceptions import UnauthorizedError
from fal_notebook.gateway.auth import Auth, Principal, may_run
from fal_notebook.gateway.exchange import Exchange, Request
from fal_notebook.gateway.fleet import Fleet, Runner
from fal_notebook.gateway.headers import is_pickle
from fal_notebook.gateway.replies import error_reply, json_reply, refuse

_WHY = {
    401: "this app needs a key: send 'Authorization: Key id:secret'",
    403: "this key may not call this app",
}


class Refusal(NamedTuple):
    """Why a request goes no further."""

    status: int
    detail: str


class Proxy:
    """The ASGI callable for ``/run``.

    Parameters
    ----------
    find : callable
        Gives the fleet of an owner and a name that has an active revision, or None.
    kill : callable
        Ends a runner at once: ``kill(runner, cause)``.
    max_body : int
        Largest request body in bytes.
    """

    def __init__(
        self,
        find: Callable[[str, str], Fleet | None],
        auth: Auth,
        kill: Callable[[Runner, str], None],
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
        principal, refusal = self._identify(app, headers)
        refusal = refusal or self._admit(app, headers, principal)
        if refusal is not None or app is None:
            status, detail = refusal or (404, "no such app")
            await refuse(error_reply(status, detail, request_id), receive, send)
            return
        path = b"/" + (parts[4] if len(parts) > 4 else b"")
        if path == b"/openapi.json" and scope["method"] == "GET" and app.revision is not None:
            # The revision keeps it: nobody starts a runner by asking what an app is.
            await json_reply(app.revision.openapi, request_id)(send)
            return
        request = Request(scope, headers, path, request_id, principal)
        await Exchange(app, request, self._kill, self._max_body).run(receive, send)

    def _identify(
        self, app: Fleet | None, headers: dict[bytes, bytes]
    ) -> tuple[Principal | None, Refusal | None]:
        """Return who calls; a wrong key is refused.

        Any other Authorization header of an app that is open to everybody is the app's own.
        """
        authorization = headers.get(b"authorization", b"")
        try:
            return self._auth.identify(authorization), None
        except UnauthorizedError as error:
            is_open = app is not None and app.serve and app.auth == "public"
            is_key = authorization[:4].lower() == b"key "
            return None, None if is_open and not is_key else Refusal(401, str(error))

    def _admit(
        self, app: Fleet | None, headers: dict[bytes, bytes], principal: Principal | None
    ) -> Refusal | None:
        """Return why this request is refused, None when it may pass."""
        if app is None:
            return Refusal(404, "no such app")
        status = may_run(principal, app.owner, app.auth, app.serve)
        if status:
            return Refusal(status, _WHY[status])
        if is_pickle(headers.get(b"content-type")) and not (principal and principal.sends_python):
            return Refusal(415, "Python values are taken from the app's owner only; send JSON")
        return None
