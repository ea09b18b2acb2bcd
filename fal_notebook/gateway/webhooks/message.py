"""The body of a webhook, in fal's form."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
from collections.abc import Awaitable, Callable
from typing import Any

from fal_notebook.gateway import trace_context
from fal_notebook.gateway.queue.records import Records
from fal_notebook.gateway.queue.table import QueuedRequest

# Bytes of an answer that a webhook takes along; many are on their way at once, each in memory.
LARGEST = 1_000_000


def of_request(records: Records, request_id: str) -> Callable[[], Awaitable[bytes]] | None:
    """Return what makes the webhook of a completed request, None when that is forgotten."""
    request = records.find(request_id)
    return None if request is None else functools.partial(_make, records, request)


def trace_of(records: Records, request_id: str) -> dict[str, str]:
    """Return the headers that name the trace of a request, {} when it takes part in none."""
    request = records.find(request_id)
    return {} if request is None else trace_context.of(request.headers)


async def _make(records: Records, request: QueuedRequest) -> bytes:
    answer = records.answer(request)
    size, pieces = records.answer_content(request, answer)
    async with contextlib.aclosing(pieces):
        payload = None if size > LARGEST else b"".join([piece async for piece in pieces])
    kind = dict(answer.headers).get(b"content-type", b"").decode("latin-1")
    return await asyncio.to_thread(body, request, answer.status, payload, size, kind)


def body(
    request: QueuedRequest,
    status_code: int,
    payload: bytes | None,
    size: int,
    content_type: str,
) -> bytes:
    """Return what a webhook says about a finished request.

    Parameters
    ----------
    status_code, payload, size, content_type
        The app's answer; its payload is None when it is too large.
    """
    ok = status_code < 400 and not request.error  # as the request's status has it
    value, left_out = _parse(payload, size, content_type) if ok or size else (None, None)
    place = f"{request.owner}/{request.app}/requests/{request.id}"
    fields = {
        "request_id": request.id,
        "gateway_request_id": request.id,
        "status": "OK" if ok else "ERROR",
        "payload": value,
        "error": None if ok else request.error or f"Invalid status code: {status_code}",
        "payload_error": left_out and f"The response {left_out}; fetch it from /queue/{place}",
    }
    return json.dumps(fields, allow_nan=False).encode()


def _parse(payload: bytes | None, size: int, content_type: str) -> tuple[Any, str | None]:
    """Return the payload's value, or None and why there is none."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind and kind != "application/json" and not kind.endswith("+json"):
        return None, f"is {kind}, not JSON"
    if payload is None:
        return None, f"has {size:,} bytes, more than the {LARGEST:,} that a webhook takes along"
    try:
        value = json.loads(payload)
        json.dumps(value, allow_nan=False)  # NaN, or a number that became infinite
    except (ValueError, RecursionError):
        return None, "is not valid JSON"
    return value, None
