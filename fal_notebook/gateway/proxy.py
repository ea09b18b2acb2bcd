"""The hot path's entrance, ``/run/{owner}/{app}[/path]``: find the app, admit the caller."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from starlette.types import Receive, Scope, Send

from fal_notebook.gateway.admission import Admission, RefusedCallerError
from fal_notebook.gateway.direct import DirectRequest
from fal_notebook.gateway.exchange import Exchange, Request
from fal_notebook.gateway.fleet import Fleet, Runner
from fal_notebook.gateway.replies import error_reply, json_reply
from fal_notebook.gateway.splice import TUNNEL
from fal_notebook.gateway.tracing import Tracing
from fal_notebook.gateway.tunnel import Tunnel


class Proxy:
    """The ASGI callable for ``/run``.

    Parameters
    ----------
    kill : callable
        Ends a runner at once: ``kill(runner, cause)``.
    max_body : int
        Largest request body in bytes.
    """

    def __init__(
        self,
        admission: Admission,
        kill: Callable[[Runner, str], None],
        max_body: int,
        tracing: Tracing,
    ) -> None:
        self._admission = admission
        self._kill = kill
        self._max_body = max_body
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        request_id = os.urandom(16).hex()
        parts = scope["raw_path"].split(b"/", 4)  # "", run, owner, app, path
        if len(parts) < 4:
            await error_reply(404, "the path is /run/{owner}/{app}", request_id)(send)
            return
        headers = dict(scope["headers"])
        try:
            admitted = self._admission.admit(parts[2], parts[3], headers)
        except RefusedCallerError as error:
            detail = str(error)
            if b"fal_jwt_token=" in scope["query_string"]:
                detail = "fal_jwt_token is not known here: send 'Authorization: Key id:secret'"
            await error_reply(error.status, detail, request_id)(send)
            return
        app = admitted.app
        path = b"/" + (parts[4] if len(parts) > 4 else b"")
        if path == b"/openapi.json" and scope["method"] == "GET" and _has_schema(app):
            assert app.revision is not None
            # The revision keeps it: nobody starts a runner by asking what an app is.
            await json_reply(app.revision.openapi, request_id)(send)
            return
        trace = self._tracing.direct(app, scope, path, request_id)
        request = Request(scope, headers, path, request_id, admitted.principal, trace)
        max_body = sys.maxsize if app.direct else self._max_body
        kind = Tunnel if scope["type"] == TUNNEL else Exchange
        exchange = kind(app, request, self._kill, max_body, live=app.direct)
        await DirectRequest(app, request, exchange).run(receive, send)


def _has_schema(app: Fleet) -> bool:
    """Say whether an app answers what it is; a server of the user's own may have no schema."""
    return app.revision is not None and bool(app.revision.openapi or not app.direct)
