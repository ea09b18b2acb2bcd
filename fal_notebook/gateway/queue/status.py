"""What a caller is told of a queued request, in the words of fal's clients; pure functions."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from fal_notebook.gateway.queue.table import COMPLETED, IN_QUEUE, QueuedRequest


def submitted(request: QueuedRequest, base: str, position: int) -> dict[str, Any]:
    """Return the answer to a submit. `base` is ``http://host/queue`` as the caller wrote it."""
    return {
        "status": IN_QUEUE,
        "request_id": request.id,
        "gateway_request_id": request.id,
        **urls(request, base),
        "queue_position": position,
    }


def status(
    request: QueuedRequest, base: str, position: int, logs: list[dict[str, Any]] | None
) -> dict[str, Any]:
    """Return the status object; `logs` is None when they were not asked for."""
    told: dict[str, Any] = {
        "status": request.state,
        "request_id": request.id,
        **urls(request, base),
    }
    if request.state == IN_QUEUE:
        return {**told, "queue_position": position}
    told["logs"] = None if logs is None else [_log_item(line) for line in logs]
    if request.state == COMPLETED:
        told["metrics"] = {"inference_time": _inference_time(request)}
        if request.error:
            told.update(error=request.error, error_type=request.error_type or None)
    return told


def urls(request: QueuedRequest, base: str) -> dict[str, str]:
    """Return where the request's answer, status and cancel are."""
    url = f"{base}/{request.owner}/{request.app}/requests/{request.id}"
    return {"response_url": url, "status_url": f"{url}/status", "cancel_url": f"{url}/cancel"}


def _inference_time(request: QueuedRequest) -> float | None:
    """Return the seconds of the last attempt, None when there was none."""
    if request.started_at is None or request.completed_at is None:
        return None
    return request.completed_at - request.started_at


def _log_item(line: dict[str, Any]) -> dict[str, Any]:
    at = datetime.fromtimestamp(line["at"] or 0.0, timezone.utc)
    return {
        "message": line["message"],
        "level": line["level"],
        "source": "USER",
        "timestamp": at.isoformat(),
    }
