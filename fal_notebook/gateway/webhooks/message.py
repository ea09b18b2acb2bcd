"""The body of a webhook, in fal's form."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from fal_notebook.gateway.queue.records import Records


async def of_request(records: Records, request_id: str) -> bytes | None:
    """Return the webhook of a completed request, None when that is forgotten."""
    request = records.find(request_id)
    if request is None:
        return None
    answer = records.answer(request)
    _, pieces = records.answer_content(request, answer)
    payload = b"".join([piece async for piece in pieces])
    kind = dict(answer.headers).get(b"content-type", b"").decode("latin-1")
    return await asyncio.to_thread(
        body, request.id, request.id, answer.status, payload, kind, request.error
    )


def body(
    request_id: str,
    gateway_request_id: str,
    status_code: int,
    payload: bytes,
    content_type: str,
    error: str,
) -> bytes:
    """Return what a webhook says about a finished request.

    Parameters
    ----------
    gateway_request_id : str
        The id of the last attempt; the request's own when there was one only.
    status_code, payload, content_type
        The app's answer; no payload when there was none.
    error : str
        Why there is no answer, or empty.
    """
    ok = 200 <= status_code < 300 and not error
    if not ok:
        error = error or f"Invalid status code: {status_code}"
    value, payload_error = _parse(payload, content_type) if ok or payload else (None, None)
    fields = {
        "request_id": request_id,
        "gateway_request_id": gateway_request_id,
        "status": "OK" if ok else "ERROR",
        "payload": value,
        "error": error or None,
        "payload_error": payload_error,
    }
    return json.dumps(fields, allow_nan=False).encode()


def _parse(payload: bytes, content_type: str) -> tuple[Any, str | None]:
    """Return the payload's value, or None and the sentence that says why there is none."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind and kind != "application/json" and not kind.endswith("+json"):
        return None, _left_out(f"is {kind}, not JSON")
    try:
        value = json.loads(payload)
        json.dumps(value, allow_nan=False)  # NaN, or a number that became infinite
    except (ValueError, RecursionError):
        return None, _left_out("is not valid JSON")
    return value, None


def _left_out(why: str) -> str:
    return f"The response {why}; fetch it from the queue with the request id."
