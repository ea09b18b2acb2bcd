"""What a webhook says of a request."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from fal_notebook.gateway.queue.content import Spool
from fal_notebook.gateway.queue.records import Records
from fal_notebook.gateway.queue.table import Answer, QueuedRequest
from fal_notebook.gateway.webhooks import message
from fal_notebook.gateway.webhooks.table import DeliveryTable


def request(request_id: str = "r", **more: Any) -> QueuedRequest:
    number = time.time_ns() // 1000
    return QueuedRequest(number, request_id, "me", "app", "POST", b"/", [], "me", **more)


REQUEST = request()


def body(status: int, payload: bytes, kind: str = "application/json", error: str = "") -> Any:
    failed = dataclasses.replace(REQUEST, error=error)
    return json.loads(message.body(failed, status, payload, len(payload), kind))


def test_a_result_is_the_payload() -> None:
    assert body(200, b'{"images": ["\\u00e4"]}') == {
        "request_id": "r",
        "gateway_request_id": "r",
        "status": "OK",
        "payload": {"images": ["ä"]},
        "error": None,
        "payload_error": None,
    }


@pytest.mark.parametrize("status", [204, 302, 304])
def test_a_redirect_is_an_answer_as_in_the_queues_status(status: int) -> None:
    assert (body(status, b"")["status"], body(status, b"")["error"]) == ("OK", None)


def test_an_error_keeps_its_details() -> None:
    told = body(422, b'{"detail": []}')
    assert (told["status"], told["payload"]) == ("ERROR", {"detail": []})
    assert told["error"] == "Invalid status code: 422"
    told = body(504, b"", "", "the start deadline passed")
    assert (told["status"], told["payload"]) == ("ERROR", None)
    assert (told["error"], told["payload_error"]) == ("the start deadline passed", None)


@pytest.mark.parametrize(
    ("payload", "kind"),
    [
        (b"\x89PNG", "image/png"),
        (b"7", "text/plain"),
        (b"{", "application/json"),
        (b"", "application/json"),
        (b"\xff", "application/json"),
        (b"NaN", "application/json"),
        (b"[1e999]", "application/json"),
        (b"[" * 100_000, "application/json"),
        (b"9" * 5000, "application/json"),
    ],
)
def test_an_answer_that_is_no_json_is_told_and_left_out(payload: bytes, kind: str) -> None:
    told = body(200, payload, kind)
    assert (told["status"], told["payload"], told["error"]) == ("OK", None, None)
    assert "JSON" in told["payload_error"]
    assert "/queue/me/app/requests/r" in told["payload_error"]


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "application/a+json", ""])
def test_json_is_known_by_its_content_type(kind: str) -> None:
    assert body(200, b"[1]", kind)["payload"] == [1]


@pytest.fixture
async def records(tmp_path: Path) -> AsyncIterator[Records]:
    records = Records(tmp_path)
    yield records
    records.close()


async def completed(records: Records, request: QueuedRequest, content: bytes) -> None:
    """Accept and complete a request; a large answer lies in a file."""
    await records.accept(request, b"{}")
    spool = Spool(records.answer_path(request.id))
    await spool.write(content)
    answer = Answer(200, [(b"content-type", b"application/json")], await spool.finish())
    await records.complete(request, answer, 1000.0)


@pytest.mark.parametrize(("size", "is_sent"), [(1_000_000, True), (1_000_001, False)])
async def test_a_payload_above_a_megabyte_is_left_out(
    records: Records, size: int, is_sent: bool
) -> None:
    await completed(records, request(), json.dumps("x" * (size - 2)).encode())
    make = message.of_request(records, "r")
    assert make is not None
    told = json.loads(await make())
    assert (told["status"], told["error"]) == ("OK", None)
    if is_sent:
        assert len(told["payload"]) == size - 2
    else:
        assert told["payload"] is None
        assert "1,000,001 bytes" in told["payload_error"]
        assert "/queue/me/app/requests/r" in told["payload_error"]


async def test_a_forgotten_request_has_no_message(records: Records) -> None:
    assert message.of_request(records, "r") is None


async def test_a_request_whose_webhook_is_outstanding_is_not_forgotten(records: Records) -> None:
    await completed(records, request("told"), b"1")
    await completed(records, request("untold", webhook="http://example.com/"), b"1")
    await records.forget(2000.0)
    assert records.find("told") is None
    assert records.find("untold") is not None
    await DeliveryTable(records.journal).done("untold")
    await records.forget(2000.0)
    assert records.find("untold") is None
