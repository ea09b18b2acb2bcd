"""The control API: who may use it, and what it makes of bad requests."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import Wire, control, deployed, with_key

from fal_notebook.discovery import GatewayInfo
from fal_notebook.gateway.app import GatewayApp
from fal_notebook.gateway.gateway import Gateway
from fal_notebook.gateway.operations.blobs import MAX_BLOB


@pytest.fixture
def client(gateway: GatewayInfo) -> Iterator[httpx.Client]:
    with control(gateway) as client:
        yield client


def test_every_route_demands_the_owner(gateway: GatewayInfo, client: httpx.Client) -> None:
    key = client.post("/api/keys", params={"scope": "API"}).json()
    paths = client.get("/openapi.json").json()["paths"]
    routes = [(method, path) for path, item in paths.items() for method in item]
    assert len(routes) > 15
    for method, path in [*routes, ("get", "/openapi.json"), ("get", "/docs"), ("get", "/x")]:
        url = gateway.url + path.replace("{digest}", "0" * 64).replace("{", "").replace("}", "")
        for headers in ({}, {"authorization": "Bearer wrong"}, with_key("a:b")):
            answer = httpx.request(method, url, headers=headers, content=b"{not json")
            assert (answer.status_code, method, path) == (401, method, path)
        answer = httpx.request(method, url, headers=with_key(key["key"]), content=b"{not json")
        assert (answer.status_code, path) == (200 if path == "/metrics" else 403, path)
    client.delete(f"/api/keys/{key['id']}")


def test_an_admin_key_controls_until_it_is_revoked(
    gateway: GatewayInfo, client: httpx.Client
) -> None:
    key = client.post("/api/keys", params={"scope": "ADMIN", "alias": "mine"}).json()
    assert key["key"] not in client.get("/api/keys").text
    assert httpx.get(f"{gateway.url}/api/apps", headers=with_key(key["key"])).status_code == 200
    client.delete(f"/api/keys/{key['id']}")
    assert httpx.get(f"{gateway.url}/api/apps", headers=with_key(key["key"])).status_code == 401
    assert client.post("/api/keys", params={"scope": "ROOT"}).status_code == 422
    assert client.delete("/api/keys/nobody").status_code == 404


def test_a_bad_request_is_422_without_a_traceback(client: httpx.Client) -> None:
    for path, body in (
        ("/api/apps/tester", b"{"),
        ("/api/apps/tester", b"[]"),
        ("/api/apps/tester", b'{"name": "../x"}'),
        ("/api/apps/Bad%20Owner", b"{}"),
        ("/api/apps/..%2f", b"{}"),
    ):
        answer = client.post(path, content=body)
        assert answer.status_code in (404, 405, 422), path
        assert "Traceback" not in answer.text
    answer = client.patch("/api/apps/tester/nobody/scaling", content=b"\xff")
    assert answer.status_code in (400, 422)
    assert client.get("/api/apps/tester/nobody").json()["error"] == "NotFoundError"
    answer = client.get("/api/apps/tester/x/logs", params={"tail": -1})
    assert (answer.status_code, answer.json()["detail"][:22]) == (422, "tail=-1 is not allowed")


def test_a_deploy_of_a_bad_owner_or_name_is_refused(client: httpx.Client) -> None:
    request = {
        "name": "fine",
        "digest": "0" * 64,
        "payload": "0" * 64,
        "manifest": {},
        "notebook": "x",
    }
    assert client.post("/api/apps/tester", json=request).status_code == 404  # no such payload
    for owner in ("Caps", "a b", "-a", "a" * 80, "é", "workflows", "comfy"):
        assert client.post(f"/api/apps/{owner}", json=request).status_code == 422, owner
    for name in ("Caps", "a/b", "..", "", "a" * 80, "a\n"):
        assert client.post("/api/apps/tester", json={**request, "name": name}).status_code == 422


# --- payloads ---------------------------------------------------------------------------------
def _blobs(state: Path) -> list[str]:
    return [path.name for path in (state / "blobs").glob("*")]


def test_a_payload_is_stored_under_its_digest(client: httpx.Client, private_state: Path) -> None:
    content = os.urandom(3_000_000)
    digest = hashlib.sha256(content).hexdigest()
    assert client.put(f"/api/blobs/{digest}", content=content).json() == {"size": len(content)}
    assert (private_state / "blobs" / digest).read_bytes() == content
    assert (private_state / "blobs" / digest).stat().st_mode & 0o777 == 0o600


def test_a_wrong_payload_leaves_nothing(client: httpx.Client, private_state: Path) -> None:
    before = _blobs(private_state)
    assert client.put(f"/api/blobs/{'0' * 64}", content=b"other").status_code == 422
    for digest in ("..%2f..%2fstore.db", "..", "%2e%2e", "A" * 64, "0" * 63, "0" * 64 + "%0a"):
        answer = client.put(f"/api/blobs/{digest}", content=b"x")
        assert answer.status_code in (404, 405, 422), digest
    assert _blobs(private_state) == before


def test_a_payload_above_the_limit_is_refused(client: httpx.Client, private_state: Path) -> None:
    before = _blobs(private_state)

    def endless() -> Iterator[bytes]:
        for _ in range(MAX_BLOB // 1_000_000 + 1):
            yield bytes(1_000_000)

    answer = client.put(f"/api/blobs/{'0' * 64}", content=endless(), timeout=60)
    assert (answer.status_code, answer.json()["error"]) == (413, "PayloadTooLargeError")
    assert _blobs(private_state) == before


def test_a_payload_that_declares_too_much_is_refused_unread(gateway: GatewayInfo) -> None:
    head = (
        f"PUT /api/blobs/{'0' * 64} HTTP/1.1\nHost: GATEWAY\nAuthorization: Bearer {gateway.token}"
    )
    with Wire(gateway) as wire:
        wire.send(f"{head}\nContent-Length: {MAX_BLOB + 1}\nExpect: 100-continue\n\n")
        assert wire.head()[0] == 413


def test_an_upload_that_breaks_off_leaves_nothing(
    gateway: GatewayInfo, private_state: Path, eventually: Any
) -> None:
    before = _blobs(private_state)
    with Wire(gateway) as wire:
        wire.send(
            f"PUT /api/blobs/{'0' * 64} HTTP/1.1\nHost: GATEWAY\nContent-Length: 100\n"
            f"Authorization: Bearer {gateway.token}\n\nhalf"
        )
        eventually(lambda: _blobs(private_state) != before)
    eventually(lambda: _blobs(private_state) == before)


# --- apps -------------------------------------------------------------------------------------
def test_scaling_is_checked_and_takes_effect(client: httpx.Client) -> None:
    with deployed("def scaled() -> int:\n    return 1\n", max_concurrency=2):
        path = "/api/apps/tester/scaled/scaling"
        assert client.patch(path, json={"keep_alive": 60}).json()["options"]["keep_alive"] == 60
        for bad in ({}, {"keep_alives": 1}, {"min_concurrency": 3}, {"machine_type": "M"}):
            answer = client.patch(path, json=bad)
            assert (answer.status_code, answer.json()["error"]) == (422, "OptionError"), bad
        assert client.get("/api/apps/tester/scaled").json()["options"]["keep_alive"] == 60


def test_an_unknown_app_is_404_everywhere(client: httpx.Client) -> None:
    for part in ("", "/runners", "/timeline", "/openapi", "/logs"):
        assert client.get(f"/api/apps/tester/nobody{part}").status_code == 404, part
    assert client.get("/api/apps/tester/nobody/logs", params={"follow": True}).status_code == 404
    assert client.delete("/api/apps/tester/nobody").status_code == 404
    assert client.delete("/api/apps/tester/nobody/deploy").status_code == 404


# --- a store that fails -----------------------------------------------------------------------
async def test_a_full_disk_is_507_and_the_gateway_goes_on(tmp_path: Path) -> None:
    info = GatewayInfo("http://127.0.0.1:1", "token", os.getpid(), 1, "x")
    gateway = Gateway(tmp_path, info)
    database = gateway.store._db
    headers = {"authorization": "Bearer token"}
    transport = httpx.ASGITransport(GatewayApp(gateway))
    async with httpx.AsyncClient(transport=transport, base_url=info.url, headers=headers) as client:
        pages = database.execute("PRAGMA page_count").fetchone()[0]
        database.execute(f"PRAGMA max_page_count = {pages}")
        alias, made = {"alias": "x" * 64}, []
        while (answer := await client.post("/api/keys", params=alias)).status_code == 200:
            made.append(answer.json()["id"])
        assert (answer.status_code, answer.json()["error"]) == (507, "DiskFullError")
        assert answer.json()["detail"].startswith(f"no room is left in {tmp_path}: free space")
        assert [key["id"] for key in (await client.get("/api/keys")).json()] == made
        with sqlite3.connect(tmp_path / "store.db") as other:
            other.execute("BEGIN IMMEDIATE")
            answer = await client.post("/api/keys")
            assert (answer.status_code, answer.json()["error"]) == (500, "StoreError")
            other.rollback()
        other.close()
        database.execute("PRAGMA max_page_count = 100000")
        assert (await client.post("/api/keys", params=alias)).status_code == 200
    await gateway.close()
