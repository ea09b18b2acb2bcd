"""Answers of the gateway itself, in FastAPI's shape with fal's error type beside it."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Reply = Callable[[Send], Awaitable[None]]
Header = tuple[bytes, bytes]


def json_reply(content: Any, request_id: str) -> Reply:
    """Return a callable that sends `content` as JSON with status 200."""
    return _reply(200, content, request_id, [])


def error_reply(status: int, detail: str, request_id: str = "", kind: str = "") -> Reply:
    """Return a callable that sends ``{"detail", "error_type"}`` with the matching headers."""
    content = {"detail": detail, **({"error_type": kind} if kind else {})}
    headers = [(b"x-fal-error-type", kind.encode())] if kind else []
    if status == 401:
        headers.append((b"www-authenticate", b"Key"))
    return _reply(status, content, request_id, headers)


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
