"""Who is recognised, and what each may do."""

from __future__ import annotations

import pytest

from fal_notebook.exceptions import UnauthorizedError
from fal_notebook.gateway.auth import ADMIN, API, Auth, HostCheck, Principal, may_run, new_key


@pytest.fixture
def auth() -> Auth:
    secrets = {"r1": "runner-secret"}
    return Auth("me", "token", lambda r: secrets.get(r, "unknown"), {"r1": "me"}.get)


def test_nobody_is_recognised_without_a_header(auth: Auth) -> None:
    assert auth.identify(None) is None
    assert auth.identify(b"") is None


def test_the_token_is_the_owner(auth: Auth) -> None:
    principal = auth.identify(b"bearer token")
    assert principal is not None
    assert (principal.user, principal.controls, principal.sends_python) == ("me", True, True)


@pytest.mark.parametrize(("scope", "controls"), [(API, False), (ADMIN, True)])
def test_a_key_is_kept_as_a_hash_only(auth: Auth, scope: str, controls: bool) -> None:
    key, text = new_key("me", scope, "")
    assert text.split(":")[1] not in repr(key)
    auth.load([key])
    principal = auth.identify(b"Key " + text.encode())
    assert principal is not None
    assert (principal.controls, principal.sends_python) == (controls, False)
    key.revoked_at = 1.0
    auth.load([key])
    with pytest.raises(UnauthorizedError):
        auth.identify(b"Key " + text.encode())


@pytest.mark.parametrize(
    "header",
    [
        *(b"Bearer", b"Bearer ", b"Bearer tokem", b"Bearer token ", b"token", b"Basic dG9rZW4="),
        *(b"Key", b"Key ", b"Key :", b"Key a", b"Key a:b", b"Key r1:", b"Key r1:wrong"),
        *(b"Key r2:runner-secret", b"Key \xff\xfe:\xe9", b"Key r1:\xe9", b"Bearer \xe9", b"\xff"),
    ],
)
def test_anything_else_is_refused(auth: Auth, header: bytes) -> None:
    with pytest.raises(UnauthorizedError):
        auth.identify(header)


@pytest.mark.parametrize("header", [b"Key", b"Key ", b"key  "])
def test_a_header_without_a_key_is_told_how_to_send_one(auth: Auth, header: bytes) -> None:
    with pytest.raises(UnauthorizedError, match="send 'Authorization: Key id:secret'"):
        auth.identify(header)


def test_a_runner_calls_for_its_owner_but_controls_nothing(auth: Auth) -> None:
    principal = auth.identify(b"Key r1:runner-secret")
    assert principal is not None
    assert (principal.user, principal.controls, principal.sends_python) == ("me", False, True)


@pytest.mark.parametrize("auth_option", ["public", "shared", "private"])
@pytest.mark.parametrize("serve", [True, False])
def test_the_gateways_owner_may_call_everything(auth_option: str, serve: bool) -> None:
    assert may_run(Principal("me", "OWNER"), "a-team", auth_option, serve) == 0


def test_names_of_this_host_are_known_and_no_others() -> None:
    check = HostCheck(8080)
    for host in (b"127.0.0.1:8080", b"localhost:8080", b"LocalHost:8080", b"[::1]:8080"):
        assert check.refusal({b"host": host}) is None
    for host in (b"", b"localhost", b"localhost:80", b"a.test:8080", b"localhost:8080, a.test"):
        assert check.refusal({b"host": host})
    assert check.refusal({})
    right = {b"host": b"localhost:8080"}
    assert check.refusal({**right, b"origin": b"http://127.0.0.1:8080"}) is None
    for origin in (
        b"null",
        b"",
        b"http://a.test:8080",
        b"https://localhost:8080",
        b"localhost:8080",
    ):
        assert check.refusal({**right, b"origin": origin})
