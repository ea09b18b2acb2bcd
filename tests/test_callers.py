"""Who calls is known to the app and nobody else says so; a hint finds the runner that gave it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import control, deployed, with_key

from fal_notebook import cli
from fal_notebook.discovery import GatewayInfo
from fal_notebook.exceptions import OptionError

WHO = """
from starlette.requests import Request
def who(request: Request) -> dict:
    names = [n for n in request.headers if n.replace("_", "-").startswith("x-fal-")]
    return {name: ", ".join(request.headers.getlist(name)) for name in names}
"""
HINTING = """
import os, time
from starlette.responses import Response
def hinting(seconds: float = 0) -> Response:
    time.sleep(seconds)
    return Response(str(os.getpid()), headers={"x-fal-runner-hints": f"model, pid-{os.getpid()}"})
"""
FORGED = [
    ("x-fal-caller-user-id", "mine"),
    ("X-FAL-Caller-User-Id", "mine"),
    ("x-fal-caller-user-id", "tester, mine"),
    ("x_fal_caller_user_id", "mine"),
    ("X_Fal-Caller_User-ID", "mine"),
    ("x-fal-request-id", "mine"),
    ("x-fal-endpoint", "/mine"),
    ("x-fal-runner-secret", "mine"),
    ("x-fal-link", "mine"),
    ("x-fal-target-url", "https://fal.run/mine"),
    ("X-Fal-Anything", "mine"),
    ("connection", "x-fal-caller-user-id, x-fal-request-id"),
]


def run(*arguments: str) -> str:
    return str(cli.run(list(arguments), "fal-notebook"))


@pytest.fixture
def guest(gateway: GatewayInfo) -> Iterator[str]:
    """The key of another user."""
    key = run("keys", "create", "--user", "guest", "--alias", "of a guest").splitlines()[0]
    yield key
    run("keys", "revoke", key.partition(":")[0])


def test_a_key_has_a_user_and_the_list_names_it(guest: str) -> None:
    (row,) = [line for line in run("keys", "list").splitlines() if guest[:16] in line]
    assert "guest" in row.split()
    for wrong in ("Guest", "a b", "-a", "a\nb", ""):
        with pytest.raises(OptionError, match="user="):
            run("keys", "create", f"--user={wrong}")


def test_a_key_that_controls_is_the_owners_only(gateway: GatewayInfo) -> None:
    with pytest.raises(OptionError, match="an ADMIN key is the owner's: leave user=ada out"):
        run("keys", "create", "--user", "ada", "--scope", "ADMIN")
    key = run("keys", "create", "--user", "tester", "--scope", "ADMIN").splitlines()[0]
    assert httpx.get(f"{gateway.url}/api/keys", headers=with_key(key)).status_code == 200
    run("keys", "revoke", key.partition(":")[0])


@pytest.mark.parametrize("alias", ["x" * 65, "a\nb", "\x1b[31mred", "\u202egnol"])
def test_an_alias_is_a_short_line(gateway: GatewayInfo, alias: str) -> None:
    with pytest.raises(OptionError, match=r"alias= .*at most 64 characters that can be printed"):
        run("keys", "create", "--alias", alias)


@pytest.mark.parametrize(("auth", "status"), [("private", 403), ("shared", 200), ("public", 200)])
def test_a_guest_may_call_what_is_shared(gateway, guest: str, auth: str, status: int) -> None:
    with deployed("def one() -> int:\n    return 1", serve=True, auth=auth) as handle:
        url = f"{gateway.url}/run/tester/{handle.name}"
        assert httpx.post(url, headers=with_key(guest)).status_code == status
        anonymous = 200 if auth == "public" else 401
        assert httpx.post(url).status_code == anonymous


def test_an_app_class_is_served_without_saying_so(shell, gateway, guest: str) -> None:
    source = "class Open(fal.App):\n    @fal.endpoint('/')\n    def one(self) -> int: return 1\n"
    shell.run("import fal_notebook as fal")
    url = f"{gateway.url}/run/tester/open"
    for auth, expected in (("public", [200, 200]), ("shared", [200, 401]), ("private", [403, 401])):
        shell.run(f"%%fal_app auth={auth} wait=true\n{source}")
        callers: list[dict[str, str]] = [with_key(guest), {}]
        assert [httpx.post(url, headers=h).status_code for h in callers] == expected


def seen(gateway: GatewayInfo, headers: list[tuple[str, str]], app: str = "who") -> list[Any]:
    """What reaches the app of a direct request and of a queued one."""
    with httpx.Client(base_url=gateway.url, headers=headers, trust_env=False) as http:
        direct = http.post(f"/run/tester/{app}").json()
        queued = http.post(f"/queue/tester/{app}").json()
        while http.get(queued["status_url"]).status_code == 202:
            pass
        return [direct, http.get(queued["response_url"]).json()]


def test_the_app_is_told_who_calls_and_a_caller_cannot_say_so(gateway, guest: str) -> None:
    with deployed(WHO, serve=True, auth="shared"):
        for headers in seen(gateway, [*FORGED, *with_key(guest).items()]):
            assert headers["x-fal-caller-user-id"] == "guest"
            assert headers["x-fal-endpoint"] == "/"
            assert "mine" not in str(headers)


def test_the_app_always_sees_how_long_files_are_to_be_kept(gateway, guest: str) -> None:
    name = "x-fal-object-lifecycle-preference"
    with deployed(WHO, serve=True, auth="shared"):
        for said in ({}, {name: '{"expiration_duration_seconds": 60}'}):
            for headers in seen(gateway, [*said.items(), *with_key(guest).items()]):
                given = json.loads(said.get(name, '{"expiration_duration_seconds": 2592000}'))
                assert json.loads(headers[name]) == given


def test_the_app_is_told_a_region(gateway) -> None:
    with deployed("import os\ndef where(): return os.environ['FAL_REGION']") as where:
        assert where() == "local"


WAYS = [("GET", ""), ("GET", "/status"), ("GET", "/status/stream"), ("PUT", "/cancel")]


@pytest.mark.parametrize("auth", ["shared", "public"])
def test_a_queued_request_is_its_callers_and_the_owners(gateway, guest: str, auth: str) -> None:
    other = run("keys", "create", "--user", "other").splitlines()[0]
    mine = run("keys", "create").splitlines()[0]
    queue = f"{gateway.url}/queue/tester/one"
    with deployed("def one() -> int:\n    return 1", serve=True, auth=auth):
        told = httpx.post(queue, headers=with_key(guest)).json()
        found = f"{queue}/requests/{told['request_id']}"

        def asked(headers: dict[str, str]) -> list[int]:
            return [httpx.request(m, found + way, headers=headers).status_code for m, way in WAYS]

        while httpx.get(f"{found}/status", headers=with_key(guest)).status_code == 202:
            pass
        assert asked(with_key(other)) == [404] * 4
        assert asked({}) == ([404] if auth == "public" else [401]) * 4
        for headers in (with_key(guest), with_key(mine), with_owners_token(gateway)):
            assert asked(headers) == [200, 200, 200, 400]
        again = {"x-fal-submit-id": told["request_id"]}
        assert httpx.post(queue, headers=with_key(guest) | again).json() == told
        assert httpx.post(queue, headers=with_key(other) | again).status_code == 409
    for key in (other, mine):
        run("keys", "revoke", key.partition(":")[0])


def test_a_request_without_a_caller_is_found_by_its_id(gateway, guest: str) -> None:
    queue = f"{gateway.url}/queue/tester/one"
    with deployed("def one() -> int:\n    return 1", serve=True, auth="public"):
        url = httpx.post(queue).json()["status_url"]
        assert {httpx.get(url, headers=h).is_success for h in ({}, with_key(guest))} == {True}


def test_an_apps_owner_is_told_who_called_it(gateway, guest: str, eventually) -> None:
    with (
        deployed("def one() -> int:\n    return 1", serve=True, auth="public") as handle,
        control(gateway) as owner,
    ):
        assert owner.get("/api/apps/tester/one").json()["callers"] == []
        begin = time.time()
        assert httpx.post(f"{gateway.url}/run/tester/one").status_code == 200
        assert httpx.post(f"{gateway.url}/run/tester/one/x").status_code == 404
        assert seen(gateway, list(with_key(guest).items()), "one") == [1, 1]
        expected = [("guest", 2), ("", 2)]  # counted when it is answered, which is a moment later
        eventually(
            lambda: [(c["user"], c["requests"]) for c in handle.status()["callers"]] == expected
        )
        guests, others = told = owner.get("/api/apps/tester/one").json()["callers"]
        times = [each[when] for each in (others, guests) for when in ("first_at", "last_at")]
        told_at = [begin, *times, time.time()]
        assert told_at == sorted(told_at)
        assert handle.status()["callers"] == told
        (line,) = [row for row in run("status", "one").splitlines() if "called by" in row]
        assert "guest 2 (last " in line
        assert "without a key 2 (last " in line


def test_a_caller_who_is_refused_is_not_counted(gateway, guest: str, eventually) -> None:
    with deployed("def one() -> int:\n    return 1", serve=True, auth="private") as handle:
        url = f"{gateway.url}/run/tester/one"
        assert httpx.post(url, headers=with_key(guest)).status_code == 403
        assert handle() == 1
        (caller,) = eventually(lambda: handle.status()["callers"])
        assert (caller["user"], caller["requests"]) == ("tester", 1)


def with_owners_token(gateway: GatewayInfo) -> dict[str, str]:
    return {"authorization": f"Bearer {gateway.token}"}


def test_a_server_of_the_users_own_is_told_so_too(shell, gateway, guest: str) -> None:
    command = f"{sys.executable} {Path(__file__).with_name('raw_server.py')} {{port}}"
    options = "exposed_port=8000 serve=true auth=shared wait=true"
    shell.run(f"%%fal_server told {options}\n{command}\n")
    headers = [*FORGED, *with_key(guest).items()]
    text = httpx.get(f"{gateway.url}/run/tester/told/echo", headers=headers).text.lower()
    assert text.count("x-fal-caller-user-id: guest\r\n") == 1
    assert text.count("caller") == 1
    assert "mine" not in text
    assert guest not in text


def test_a_hint_finds_the_runner_that_gave_it(gateway, eventually) -> None:
    with deployed(HINTING, serve=True, min_concurrency=2), control(gateway) as api:

        def call(hint: str) -> str:
            return api.post("/run/tester/hinting", headers={"x-fal-runner-hint": hint}).text

        def both() -> set[str]:
            queued = api.post("/queue/tester/hinting", json={"seconds": 0.2}).json()
            pids = {call("unknown"), call("unknown")}
            while api.get(queued["status_url"]).status_code == 202:
                pass
            pids.add(api.get(queued["response_url"]).text)
            return pids if len(pids) == 2 else set()

        for pid in sorted(eventually(both)) * 3:
            assert call(f"pid-{pid}") == pid
