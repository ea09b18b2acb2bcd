"""``/proxy``: what fal's JavaScript client wants of fal becomes a request to a route of ours."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from serving import Wire, control, deployed, run_url

from fal_notebook.discovery import GatewayInfo
from fal_notebook.gateway.js_proxy import ForeignTargetError, local


def scope_of(*targets: bytes) -> dict[str, Any]:
    headers = [(b"host", b"h"), *((b"x-fal-target-url", target) for target in targets)]
    return {
        "method": "PUT",
        "path": "/proxy",
        "raw_path": b"/proxy",
        "query_string": b"mine=1",
        "headers": headers,
    }


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        (b"https://fal.run/me/app", b"/run/me/app", b""),
        (b"https://FAL.run/me/app/x%2Fy?a=1&a=%20", b"/run/me/app/x%2Fy", b"a=1&a=%20"),
        (b"https://queue.fal.run/a/b/requests/1/status?x", b"/queue/a/b/requests/1/status", b"x"),
        (b"https://rest.fal.ai/tokens/", b"/rest/tokens/", b""),
        (b"https://v3.fal.media/files/upload", b"/cdn/files/upload", b""),
        (b"https://fal.run", b"/run/", b""),
    ],
)
def test_fals_own_hosts_are_routes_here(target: bytes, path: bytes, query: bytes) -> None:
    scope = local(scope_of(target))
    assert scope["raw_path"] == path
    assert scope["query_string"] == query
    assert (scope["method"], scope["headers"]) == ("PUT", [(b"host", b"h")])
    assert scope["path"].encode() == scope["raw_path"].replace(b"%2F", b"/")


@pytest.mark.parametrize(
    "target",
    [
        *(b"", b"/run/me/app", b"fal.run/me/app", b"http://fal.run/me/app", b"https://"),
        *(b"https://fal.run.test/x", b"https://test/fal.run", b"https://fal.run:444/x"),
        *(b"https://fal.run@a.test/x", b"https://a.test@fal.run/x", b"https://127.0.0.1/x"),
        *(b"https://fal.run\\@a.test/x", b"https://fal.run/a b", b"file:///etc/passwd"),
        *(b"https://api.fal.ai/x", b"https://fal.run/x\thttps://a.test", b"https://fal.run/x#y"),
    ],
)
def test_any_other_target_is_refused(target: bytes) -> None:
    with pytest.raises(ForeignTargetError):
        local(scope_of(target))


def test_no_target_and_two_targets_are_refused() -> None:
    for targets in ((), (b"https://fal.run/a/b", b"https://fal.run/a/c")):
        with pytest.raises(ForeignTargetError, match="once"):
            local(scope_of(*targets))


def to(target: str) -> dict[str, str]:
    return {"x-fal-target-url": target}


def test_proxied_requests_are_admitted_as_their_routes_are(gateway: GatewayInfo) -> None:
    with deployed("def double(x: int) -> int:\n    return 2 * x", serve=True) as handle:
        target, url = to("https://fal.run/tester/double"), f"{gateway.url}/proxy"
        with control(gateway) as api:
            direct = api.post(run_url(gateway, handle), json={"x": 4})
            for path in ("/proxy", "/proxy/"):
                proxied = api.post(path, json={"x": 4}, headers=target)
                assert (proxied.status_code, proxied.json()) == (200, direct.json())
            assert api.get("/proxy", headers=target).status_code == 405
            assert api.post("/proxy", headers=to("https://a.test/x")).status_code == 400
            assert api.post("/proxy", headers=to("https://fal.run/../api/keys")).status_code == 404
        assert httpx.post(url, json={"x": 4}, headers=target).status_code == 401
        assert httpx.get(url, headers=to("https://rest.fal.ai/x")).status_code == 401
        wrong = {"host": "a.test", **target}
        assert httpx.post(url, json={"x": 4}, headers=wrong).status_code == 403


def test_under_a_foreign_name_it_does_not_tell_that_it_is_there(gateway: GatewayInfo) -> None:
    foreign = ({"host": "evil.com"}, {"origin": "https://evil.com"})
    for headers in foreign:
        for target in ({}, to("https://a.test/x"), to("https://fal.run/a/b")):
            answer = httpx.post(f"{gateway.url}/proxy", headers=headers | target)
            assert answer.status_code == 403
            assert answer.json() == httpx.post(gateway.url, headers=headers).json()


def test_a_large_body_is_refused_without_a_reset(gateway: GatewayInfo) -> None:
    with Wire(gateway) as wire:
        wire.send("POST /proxy HTTP/1.1\nHost: GATEWAY\nContent-Length: 1000000\n\n")
        status, _, body = wire.send(b"x" * 1_000_000).response()
    assert status == 400
    assert b"x-fal-target-url" in body
