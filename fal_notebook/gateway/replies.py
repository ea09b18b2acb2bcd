"""Answers of the gateway itself, in FastAPI's shape with fal's error type beside it."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from starlette.types import Send

from fal_notebook.gateway.headers import Header

Reply = Callable[[Send], Awaitable[None]]

# fal's error type of what is the caller's to mend.
BAD_REQUEST = "bad_request"


def json_reply(content: Any, request_id: str, status: int = 200) -> Reply:
    """Return a callable that sends `content` as JSON."""
    return _reply(status, content, request_id, [])


def error_reply(
    status: int,
    detail: str,
    request_id: str = "",
    kind: str = BAD_REQUEST,
    close: bool = False,
    more: Mapping[str, str] = {},
    extra: Iterable[Header] = (),
) -> Reply:
    """Return a callable that sends ``{"detail", "error_type"}`` and `more`.

    Their headers go with it, and the `extra` ones.
    """
    headers = [(b"x-fal-error-type", kind.encode()), *extra]
    if close or status == 413:  # who sends too much need not end it
        headers.append((b"connection", b"close"))
    if status == 401:
        headers.append((b"www-authenticate", b"Key"))
    return _reply(status, {**error_content(detail, kind), **more}, request_id, headers)


def error_content(detail: str, kind: str) -> dict[str, str]:
    """Return the body of the platform's own errors."""
    return {"detail": detail, "error_type": kind}


def _reply(status: int, content: Any, request_id: str, headers: list[Header]) -> Reply:
    body = json.dumps(content).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        *headers,
        *([(b"x-fal-request-id", request_id.encode())] if request_id else []),
    ]

    async def reply(send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return reply
