"""The request line and headers of a submit, read into a queued request; bad ones are refused."""

from __future__ import annotations

import os
import re
from urllib.parse import parse_qsl

from starlette.types import Scope

from fal_notebook.gateway import clock, start_deadline
from fal_notebook.gateway.admission import Admitted
from fal_notebook.gateway.exchange import RefusedRequestError
from fal_notebook.gateway.queue.table import QueuedRequest

_ID = re.compile(rb"[0-9a-f]{32}")
_FLAGS = {b"1": True, b"true": True, b"yes": True}
_FLAGS |= {b"": False, b"0": False, b"false": False, b"no": False}
_OURS = (b"fal_webhook", b"fal_max_queue_length")


def read(
    scope: Scope, headers: dict[bytes, bytes], path: bytes, admitted: Admitted, number: int
) -> QueuedRequest:
    """Return the request that is submitted; `path` is what follows the app's name.

    Raises
    ------
    RefusedRequestError
        422 when a header or parameter of the queue is malformed.
    """
    app, principal = admitted.app, admitted.principal
    patience = start_deadline.patience(app, headers, principal)
    return QueuedRequest(
        number=number,
        id=_id(headers, number),
        owner=app.owner,
        app=app.name,
        method=scope["method"],
        target=_target(path, scope["query_string"]),
        headers=_kept(scope["headers"], principal is not None),
        user=principal.user if principal else None,
        low=_priority(headers) == b"low",
        no_retry=_no_retry(headers),
        deadline=None if patience is None else clock.now() + patience,
        webhook=_webhook(scope),
    )


def _id(headers: dict[bytes, bytes], number: int) -> str:
    """Return the id: the caller's own, so that it can submit again what it got no answer to."""
    chosen = headers.get(b"x-fal-submit-id")
    if chosen is None:
        return f"{number:016x}{os.urandom(8).hex()}"
    if not _ID.fullmatch(chosen):
        raise RefusedRequestError(422, "x-fal-submit-id is 32 hexadecimal digits in lower case")
    return chosen.decode()


def max_queue_length(scope: Scope) -> int | None:
    """Return the caller's limit, None without one."""
    text = parameter(scope, "fal_max_queue_length")
    if text is None:
        return None
    if not re.fullmatch("[0-9]{1,18}", text):
        detail = f"fal_max_queue_length={text!r} is not a whole number of at most 18 digits"
        raise RefusedRequestError(422, detail)
    return int(text)


def parameter(scope: Scope, name: str) -> str | None:
    """Return a parameter of the query, None when it is not there."""
    given = parse_qsl(scope["query_string"].decode("latin-1"), True)
    found = [value for key, value in given if key == name]
    if len(found) > 1:
        raise RefusedRequestError(422, f"{name} occurs twice in the query; give it once")
    return found[0] if found else None


def wants_logs(scope: Scope) -> bool:
    """Say whether who asks for a status wants its log lines too."""
    text = parameter(scope, "logs") or ""
    flag = _FLAGS.get(text.lower().encode())
    if flag is None:
        raise RefusedRequestError(422, f"logs={text!r} is not 1, true or yes, or 0, false or no")
    return flag


def _webhook(scope: Scope) -> str:
    """Return where the result goes, "" for nowhere; who names nothing would wait in vain."""
    url = parameter(scope, "fal_webhook")
    if url is not None and not url.strip():
        raise RefusedRequestError(422, "fal_webhook is empty: give it a URL, or leave it out")
    return url or ""


def _target(path: bytes, query: bytes) -> bytes:
    """Return path and query as the app gets them: without the queue's own parameters."""
    kept = b"&".join(part for part in query.split(b"&") if part.split(b"=")[0] not in _OURS)
    return path + b"?" + kept if kept else path


def _kept(headers: list[tuple[bytes, bytes]], is_known: bool) -> list[tuple[bytes, bytes]]:
    """Return the headers to keep; the caller's key is for the gateway and is never written."""
    return [(n, v) for n, v in headers if not (is_known and n == b"authorization")]


def _priority(headers: dict[bytes, bytes]) -> bytes:
    priority = headers.get(b"x-fal-queue-priority", b"normal").lower()
    if priority not in (b"normal", b"low"):
        raise RefusedRequestError(422, "x-fal-queue-priority is normal or low")
    return priority


def _no_retry(headers: dict[bytes, bytes]) -> bool:
    flag = _FLAGS.get(headers.get(b"x-fal-no-retry", b"").lower())
    if flag is None:
        raise RefusedRequestError(422, "x-fal-no-retry is 1, true or yes, or 0, false or no")
    return flag
