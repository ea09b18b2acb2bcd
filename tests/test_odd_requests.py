"""Requests that no client sends, to every route that speaks HTTP by itself: never a 5xx."""

from __future__ import annotations

import itertools

import pytest
from serving import control

from fal_notebook.discovery import GatewayInfo

FILE = "/storage/files/" + "0" * 32
PATHS = [
    *("/run/tester/act", "/run/tester/%ff", "/run/tester/act/%ff%00", "/queue/%ff/a"),
    *("/queue/tester/act?fal_webhook=http://[", "/queue/tester/act?fal_webhook=http://a:99999/"),
    *("/queue/tester/act?fal_webhook=%00", "/queue/tester/act?fal_max_queue_length=%ff"),
    *("/queue/tester/act/%ff%00", "/queue/tester/act/requests/zz/status", f"{FILE}/%ff"),
    *("/storage/files", "/cdn/files/upload", "/cdn/files/upload/multipart", "/proxy"),
    *("/rest/storage/upload/initiate", "/rest/storage/auth/token", "/.well-known/jwks.json"),
    *("/storage/uploads/" + "0" * 32 + "?a=%ff", "/storage/uploads/" + "0" * 32 + "/99999"),
]
BODIES = [b"", b"[1]", b"\xff", b'{"file_name": "\\ud800"}', b'{"file_name": 5}', b"[" * 50_000]
HEADERS = [
    {},
    {"x-fal-file-name": "%ff", "x-fal-object-lifecycle": "[]", "x-fal-request-timeout": "1e999"},
    {"x-fal-object-lifecycle": '{"expiration_duration_seconds": "x"}', "range": "bytes=x"},
]


@pytest.mark.parametrize("method", ["POST", "GET", "PUT", "DELETE", "HEAD", "OPTIONS"])
def test_what_no_client_sends_is_refused(gateway: GatewayInfo, act: str, method: str) -> None:
    with control(gateway) as api:
        for path, body, headers in itertools.product(PATHS, BODIES, HEADERS):
            given = {"content-type": "application/json", **headers}
            answer = api.request(method, path, content=body, headers=given)
            assert answer.status_code < 500, (path, body[:30], headers, answer.text)
