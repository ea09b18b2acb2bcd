"""References, credentials as users write them, and private registries with a real one."""

from __future__ import annotations

from typing import Any

import pytest

from fal_notebook.container import Registry
from fal_notebook.exceptions import OptionError
from fal_notebook.registries import (
    HUB_KEY,
    Reference,
    calls,
    engine_key,
    explain,
    host_of_key,
    hosts_in,
    literal,
    resolved,
    to_send,
)

DIGEST = "sha256:" + "0" * 64


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("python", ("docker.io", "library/python", "", "")),
        ("python:3.11-slim", ("docker.io", "library/python", "3.11-slim", "")),
        ("my-org/my-server:latest", ("docker.io", "my-org/my-server", "latest", "")),
        ("index.docker.io/my-org/x", ("docker.io", "my-org/x", "", "")),
        ("localhost/x", ("localhost", "x", "", "")),
        ("127.0.0.1:5000/a/b:1", ("127.0.0.1:5000", "a/b", "1", "")),
        (f"ghcr.io/a/b:1@{DIGEST}", ("ghcr.io", "a/b", "1", DIGEST)),
        (
            "123456789012.dkr.ecr.us-east-1.amazonaws.com/app",
            ("123456789012.dkr.ecr.us-east-1.amazonaws.com", "app", "", ""),
        ),
        (
            "us-docker.pkg.dev/project/repo/app:v1",
            ("us-docker.pkg.dev", "project/repo/app", "v1", ""),
        ),
    ],
)
def test_a_reference_is_cut_into_host_path_tag_and_digest(
    text: str, parts: tuple[str, ...]
) -> None:
    found = Reference.of(text)
    assert (found.host, found.path, found.tag, found.digest) == parts


@pytest.mark.parametrize("text", ["", "A/b", "https://ghcr.io/a", "a b", "a@sha256:1", "x:", "-x"])
def test_what_is_no_reference_is_refused_with_its_form(text: str) -> None:
    with pytest.raises(OptionError, match=r"no reference to an image: write \[HOST"):
        Reference.of(text)


def test_all_names_of_docker_hub_are_one_host() -> None:
    names = (HUB_KEY, "docker.io", "index.docker.io", "https://registry-1.docker.io/v2/")
    assert {host_of_key(name) for name in names} == {"docker.io"}
    assert engine_key("docker.io") == HUB_KEY
    assert host_of_key("https://ghcr.io/v2/") == "ghcr.io" == engine_key("ghcr.io")


def test_the_registries_that_a_dockerfile_names_are_found() -> None:
    text = (
        "FROM --platform=linux/amd64 ghcr.io/a/b:1 AS one\nfrom scratch\nFROM alpine\n"
        "COPY --from=quay.io/x/y /a /b\nRUN --mount=type=bind,from=localhost:5000/z,target=/z ls\n"
        "FROM $BASE\nFROM ${HOST}/image\n"
    )
    assert hosts_in(text) == {"ghcr.io", "docker.io", "quay.io", "localhost:5000"}


def entry(username: str, password: Any) -> Registry:
    return Registry(username=username, password=password)


def test_the_environments_values_are_put_in_and_others_are_left_to_stored_secrets() -> None:
    given = {HUB_KEY: entry("$WHO", "${TOKEN}"), "ghcr.io": entry("me", "$STORED")}
    sent = to_send(given, {"WHO": "somebody", "TOKEN": "$dollar"})
    assert sent == {
        "docker.io": {"username": "somebody", "password": "$$dollar"},
        "ghcr.io": {"username": "me", "password": "$STORED"},
    }
    asked = {"STORED": "value"}.__getitem__
    assert resolved(sent["docker.io"]["password"], asked) == "$dollar"  # type: ignore[arg-type]
    assert resolved("$STORED", asked) == "value"
    assert resolved("plain$", asked) == "plain$" == literal("plain$")


def test_a_command_is_sent_as_it_is_and_a_callable_is_called_each_time() -> None:
    tokens = iter(["first\n", "second"])
    given = {
        "a.example": entry("AWS", ["aws", "ecr", "get-login-password"]),
        "b.example": entry("me", lambda: next(tokens)),
    }
    assert to_send(given, {})["a.example"]["password"] == ["aws", "ecr", "get-login-password"]
    assert to_send({"b.example": given["b.example"]}, {})["b.example"]["password"] == "second"
    assert calls(given) == {"b.example"}


def failing() -> str:
    raise RuntimeError("no token today")


@pytest.mark.parametrize(
    ("function", "reason"),
    [(failing, "failed: RuntimeError: no token today"), (lambda: None, "returned no text")],
)
def test_a_callable_that_gives_no_password_is_named_by_its_registry(
    function: Any, reason: str
) -> None:
    with pytest.raises(OptionError, match=f"password of ghcr.io {reason}"):
        to_send({"ghcr.io": entry("me", function)}, {})


def test_no_password_is_in_a_pickle() -> None:
    import cloudpickle

    for password in ("a-password", ["print", "a-password"], lambda: "a-password"):
        assert b"a-password" not in cloudpickle.dumps(entry("me", password))


def test_a_refusal_says_whose_credentials_it_was_and_where_others_go() -> None:
    said = "unauthorized: authentication required"
    none = explain("pulled", "ghcr.io/a/b", said, None)
    assert (
        "ghcr.io is private and there are no credentials" in none and "docker login ghcr.io" in none
    )
    assert "registries={'ghcr.io'" in none
    wrong = explain("pushed", "ghcr.io/a/b", said, ("me", "the image's registries"))
    assert "cannot be pushed" in wrong and "refused the user me" in wrong
    assert "the image's registries" in wrong
    hub = explain("pulled", "my-org/x", "access denied, does not exist or may require login", None)
    assert "no such image, or it is private" in hub and HUB_KEY in hub
    ecr = "1.dkr.ecr.eu-west-1.amazonaws.com/x"
    assert "valid for 12 hours" in explain("pulled", ecr, "denied: token expired", ("AWS", "x"))
    google = explain("pulled", "us-docker.pkg.dev/p/r/x", said, ("_json_key_base64", "x"))
    assert "base64 -w0 key.json" in google
    assert "no such repository or tag" in explain("pulled", "ghcr.io/a", "manifest unknown", None)
