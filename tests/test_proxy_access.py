"""Who may call ``/run``, and what is refused as it could harm those who may."""

from __future__ import annotations

import httpx
import pytest
from serving import Wire, control, deployed, post, run_url, with_key

from fal_notebook.discovery import GatewayInfo


def test_what_the_gateway_refuses_has_fals_error_type(gateway: GatewayInfo, act: str) -> None:
    wrong = with_key("a:b")
    for answer in (
        httpx.post(f"{gateway.url}/run/tester/nobody", json={}),
        httpx.post(f"{gateway.url}/run/tester"),
        httpx.post(act, json={}, headers=wrong),
        httpx.post(act, json={}, headers={"origin": "http://evil.test"}),
        httpx.post(act, content=b"", headers={"content-type": PICKLE}),
        httpx.get(f"{gateway.url}/api/apps"),
    ):
        assert answer.status_code in (401, 403, 404, 415)
        assert answer.json()["error_type"] == answer.headers["x-fal-error-type"] == "bad_request"


@pytest.mark.filterwarnings("ignore:.* without serve=true")
@pytest.mark.parametrize("serve", [True, False])
@pytest.mark.parametrize("auth", ["public", "shared", "private"])
@pytest.mark.parametrize("team", [None, "other-team"])
def test_who_may_call(gateway: GatewayInfo, auth: str, serve: bool, team: str | None) -> None:
    with control(gateway) as client:
        key = client.post("/api/keys").json()
        source = f"def open_{auth}() -> int:\n    return 1\n"
        extra = {"owner": team} if team else {}
        with deployed(source, auth=auth, serve=serve, **extra) as handle:
            url = run_url(gateway, handle)
            owner = {"authorization": f"Bearer {gateway.token}"}
            public, shared = serve and auth == "public", serve and auth == "shared"
            expected = {
                "owner": 200,
                "key": 200 if not team or public or shared else 403,
                "no key": 200 if public else 401,
                "wrong key": 401,
            }
            assert expected == {
                "owner": httpx.post(url, json={}, headers=owner).status_code,
                "key": httpx.post(url, json={}, headers=with_key(key["key"])).status_code,
                "no key": httpx.post(url, json={}).status_code,
                "wrong key": httpx.post(url, json={}, headers=with_key("a:b")).status_code,
            }
        client.delete(f"/api/keys/{key['id']}")


def test_a_revoked_key_is_refused(gateway: GatewayInfo) -> None:
    source = "def closed() -> int:\n    return 1\n"
    with control(gateway) as client, deployed(source, serve=True) as handle:
        url, key = run_url(gateway, handle), client.post("/api/keys").json()
        assert httpx.post(url, json={}, headers=with_key(key["key"])).status_code == 200
        client.delete(f"/api/keys/{key['id']}")
        answer = httpx.post(url, json={}, headers=with_key(key["key"]))
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Key")


PICKLE = "application/vnd.fal-notebook.pickle"


@pytest.mark.parametrize(
    "kind",
    [PICKLE, PICKLE.upper(), f"{PICKLE}; charset=utf-8", f"{PICKLE} ;a=b", f"a/b, {PICKLE}"],
)
def test_a_pickle_from_anyone_but_the_owner_never_reaches_a_runner(
    gateway: GatewayInfo, act: str, kind: str
) -> None:
    with control(gateway) as client:
        key = client.post("/api/keys", params={"scope": "ADMIN"}).json()
        for headers in ({}, with_key(key["key"])):
            headers = {**headers, "content-type": kind}
            assert httpx.post(act, content=b"\x80", headers=headers).status_code == 415
        client.delete(f"/api/keys/{key['id']}")


def test_headers_that_can_be_read_in_two_ways_are_refused(gateway: GatewayInfo, act: str) -> None:
    for name, value in (
        ("Host", "GATEWAY"),
        ("Authorization", "Key a:b"),
        ("Content-Type", "application/json"),
        ("Origin", "http://GATEWAY"),
    ):
        lines = (f"{name}: {value}",) * (1 if name == "Host" else 2)
        with Wire(gateway) as wire:
            assert wire.send(post("/run/tester/act", {}, *lines)).response()[0] == 400, name


@pytest.mark.parametrize("path", ["/run/tester/act", "/metrics", "/api/apps", "/nowhere"])
def test_no_web_page_gets_through(gateway: GatewayInfo, act: str, path: str) -> None:
    port = gateway.url.rsplit(":", 1)[1]
    owner = f"Authorization: Bearer {gateway.token}"
    method = "POST" if path.startswith("/run") else "GET"

    def status(host: str, *headers: str) -> int:
        lines = [f"{method} {path} HTTP/1.1", *([f"Host: {host}"] if host else []), owner]
        with Wire(gateway) as wire:
            wire.send("\n".join([*lines, *headers, "Content-Length: 2"]) + "\n\n{}")
            return wire.head()[0]

    for host in ("127.0.0.1", "localhost", "LOCALHOST", "[::1]"):
        assert status(f"{host}:{port}") in (200, 404), host
    for host in ("evil.test", f"evil.test:{port}", "127.0.0.1:1", "127.0.0.1", f"0.0.0.0:{port}"):
        assert status(host) == 403, host
    assert status("") in (400, 403)
    for origin in ("http://evil.test", "null", "", "https://localhost:" + port):
        assert status(f"localhost:{port}", f"Origin: {origin}") == 403, origin
    assert status(f"localhost:{port}", f"Origin: http://localhost:{port}") in (200, 404)
