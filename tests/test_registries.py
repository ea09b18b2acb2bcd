"""References, credentials as users write them, and private registries with a real one."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import docker
import pytest
from private_registry import OTHER, PASSWORD, USER, Registry

from fal_notebook import container
from fal_notebook.backends import logins
from fal_notebook.backends.engine import Engine, Streams
from fal_notebook.backends.logins import Given, Login, folder, login
from fal_notebook.backends.logins import logins as logins_of
from fal_notebook.backends.pulls import Pulls
from fal_notebook.exceptions import BuildError, OptionError, RegistryError
from fal_notebook.image import Recipe
from fal_notebook.registries import (
    HUB_KEY,
    Reference,
    calls,
    engine_key,
    explain,
    host_of_key,
    hosts_of,
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


def test_the_registries_of_names_are_found_and_what_is_no_name_has_none() -> None:
    names = ("ghcr.io/a/b:1", "scratch", "alpine", "localhost:5000/z", "$BASE", "${HOST}/image")
    assert hosts_of(names) == {"ghcr.io", "docker.io", "localhost:5000"}


def entry(username: str, password: Any) -> container.Registry:
    return container.Registry(username=username, password=password)


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
    assert "ghcr.io is private and there are no credentials" in none
    assert "docker login ghcr.io" in none
    assert "registries={'ghcr.io'" in none
    wrong = explain("pushed", "ghcr.io/a/b", said, ("me", "the image's registries"))
    assert "cannot be pushed" in wrong
    assert "refused the user me" in wrong
    assert "the image's registries" in wrong
    hub = explain("pulled", "my-org/x", "access denied, does not exist or may require login", None)
    assert "no such image, or it is private" in hub
    assert HUB_KEY in hub
    ecr = "1.dkr.ecr.eu-west-1.amazonaws.com/x"
    assert "valid for 12 hours" in explain("pulled", ecr, "denied: token expired", ("AWS", "x"))
    google = explain("pulled", "us-docker.pkg.dev/p/r/x", said, ("_json_key_base64", "x"))
    assert "base64 -w0 key.json" in google
    assert "no such repository or tag" in explain("pulled", "ghcr.io/a", "manifest unknown", None)


# --- with a real registry --------------------------------------------------------------------
def image(text: str) -> str:
    return f"FROM scratch\nLABEL text={text}\nCMD x\n"


def pull(host: Engine, name: str, given: Given) -> str:
    async def asked() -> str:
        return host.pull(name, lambda line: None, await login(Reference.of(name).host, given))

    return asyncio.run(asked())


@pytest.fixture
def host(docker_host: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Engine]:
    """The engine as the gateway uses it, for a user who never logged in."""
    monkeypatch.setenv("DOCKER_HOST", docker_host)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    host = Engine()
    yield host
    host.close()


def test_an_image_is_pulled_with_the_right_password_only(
    registry: Registry, host: Engine, engine: docker.APIClient
) -> None:
    name = f"{registry.host}/team/private:1"
    digest = registry.offer(engine, "team/private:1", image("first"))
    with pytest.raises(RegistryError, match=r"is private and there are no credentials") as none:
        pull(host, name, {})
    assert f"docker login {registry.host}" in str(none.value)
    with pytest.raises(RegistryError, match=f"refused the user {USER} and its password") as wrong:
        pull(host, name, {registry.host: {"username": USER, "password": OTHER}})
    assert wrong.value.host == none.value.host == registry.host
    assert OTHER not in str(wrong.value)
    assert pull(host, name, registry.entry) == digest
    assert host.image_id(name)


@pytest.mark.parametrize("name", ["team/private:none", "team/none:1"])
def test_an_unknown_tag_or_repository_is_told_from_a_refusal(
    registry: Registry, host: Engine, name: str
) -> None:
    with pytest.raises(RegistryError, match="no such repository or tag; check the name") as caught:
        pull(host, f"{registry.host}/{name}", registry.entry)
    assert caught.value.host == ""


def test_a_registry_that_is_not_there_is_no_matter_of_credentials(host: Engine) -> None:
    with pytest.raises(RegistryError, match=r"cannot be pulled: .*connection refused") as caught:
        pull(host, "127.0.0.1:1/x:1", {})
    assert caught.value.host == ""


def test_a_command_gives_the_password_anew_at_each_use(
    registry: Registry, host: Engine, engine: docker.APIClient, tmp_path: Path
) -> None:
    name, token = f"{registry.host}/team/token:1", tmp_path / "token"
    registry.offer(engine, "team/token:1", image("token"))
    given: Given = {registry.host: {"username": USER, "password": ["cat", str(token)]}}
    token.write_text(f"{registry.password}\n")
    assert pull(host, name, given)
    registry.accept(OTHER)
    try:
        with pytest.raises(RegistryError, match=r"came from the command cat"):
            pull(host, name, given)
        token.write_text(OTHER)
        assert pull(host, name, given)
    finally:
        registry.accept(PASSWORD)


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (
            ["sh", "-c", "echo a-token; echo no network >&2; exit 3"],
            "status 3; it said: no network",
        ),
        (["sh", "-c", "exit 0"], "status 0; it said: nothing"),
        (["/none/at/all"], "cannot be run: No such file"),
        (["sh", "-c", "sleep 1000"], "gave none within"),
    ],
)
async def test_a_command_that_gives_no_password_says_why(
    command: list[str], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logins, "PATIENCE", 1.0)
    given: Given = {"a.example": {"username": "me", "password": command}}
    with pytest.raises(RegistryError, match=f"the password of a.example .*{reason}") as caught:
        await login("a.example", given)
    assert "a-token" not in str(caught.value)


def write_config(folder: Path, config: dict[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps(config))


def write_helper(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    helper = folder / "docker-credential-test"
    helper.write_text(f"#!/bin/sh\nread server\n{script}\n")
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_what_docker_login_wrote_is_read_at_each_use(
    registry: Registry, host: Engine, engine: docker.APIClient, tmp_path: Path
) -> None:
    name = f"{registry.host}/team/login:1"
    registry.offer(engine, "team/login:1", image("login"))
    with pytest.raises(RegistryError, match="no credentials"):
        pull(host, name, {})
    secret = base64.b64encode(f"{USER}:{registry.password}".encode()).decode()
    write_config(tmp_path, {"auths": {registry.host: {"auth": secret}}})
    assert pull(host, name, {})
    secret = base64.b64encode(b"other:password").decode()
    write_config(tmp_path, {"auths": {registry.host: {"auth": secret}}})
    with pytest.raises(RegistryError, match=r"refused the user other .* from `docker login`"):
        pull(host, name, {})


@pytest.mark.parametrize("helped", ["credsStore", "credHelpers"])
def test_credential_helpers_are_asked(
    registry: Registry,
    host: Engine,
    engine: docker.APIClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    helped: str,
) -> None:
    name = f"{registry.host}/team/helped:1"
    registry.offer(engine, "team/helped:1", image(helped))
    answer = json.dumps({"Username": USER, "Secret": registry.password})
    write_helper(tmp_path, monkeypatch, f"[ $server = {registry.host} ] && echo '{answer}'")
    helpers = {"credsStore": "test", "credHelpers": {registry.host: "test"}}
    write_config(tmp_path, {helped: helpers[helped]})
    assert pull(host, name, {})


async def test_a_helper_that_knows_nothing_leaves_the_entry_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    write_helper(tmp_path, monkeypatch, "echo credentials not found in native keychain; exit 1")
    secret = base64.b64encode(b"me:word").decode()
    write_config(tmp_path, {"credsStore": "test", "auths": {HUB_KEY: {"auth": secret}}})
    found = await login("docker.io", {})
    assert found is not None
    assert (found.username, found.password) == ("me", "word")
    assert await login("ghcr.io", {}) is None


async def test_a_helper_that_fails_and_a_broken_configuration_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    write_config(tmp_path, {"credsStore": "none-such"})
    with pytest.raises(
        RegistryError, match=r"docker-credential-none-such for ghcr.io cannot be run"
    ):
        await login("ghcr.io", {})
    write_config(tmp_path, {"auths": {"ghcr.io": {"auth": "no base64"}}})
    with pytest.raises(
        RegistryError, match=r"for ghcr.io cannot be read .* `docker login ghcr.io`"
    ):
        await login("ghcr.io", {})


def test_the_docker_command_gets_a_private_folder_that_goes(
    registry: Registry, host: Engine, engine: docker.APIClient
) -> None:
    name = f"{registry.host}/team/command:1"
    registry.offer(engine, "team/command:1", image("command"))
    with folder(asyncio.run(logins_of({registry.host}, registry.entry))) as private:
        assert private.stat().st_mode & 0o777 == 0o700
        assert (private / "config.json").stat().st_mode & 0o777 == 0o600
        command = ["docker", "pull", name]
        environment = {**os.environ, "DOCKER_CONFIG": str(private)}
        pulled = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert pulled.returncode == 0, pulled.stderr
    assert not private.exists()


def test_a_private_base_is_pulled_by_the_builder(
    registry: Registry, host: Engine, engine: docker.APIClient
) -> None:
    registry.offer(engine, "team/base:1", image("base"))
    recipe = Recipe("test", f"FROM {registry.host}/team/base:1\nLABEL more=x\n", {})

    async def known() -> Mapping[str, Login]:
        return await logins_of({registry.host}, registry.entry)

    with pytest.raises(BuildError, match="no basic auth credentials"):
        host.build(recipe, lambda line: None, Streams(), anew=False)
    host.build(recipe, lambda line: None, Streams(), False, asyncio.run(known()))
    assert host.image_id(recipe.tag)
    host.remove_image(recipe.tag)


async def call(function: Any, *arguments: Any) -> Any:
    return await asyncio.to_thread(function, *arguments)


async def test_a_tag_is_held_to_its_digest_also_when_it_moves(
    registry: Registry, host: Engine, engine: docker.APIClient
) -> None:
    first = registry.offer(engine, "team/moves:1", image("before"))
    name, pulls = f"{registry.host}/team/moves:1", Pulls(host, call)
    lines: list[str] = []
    pinned = await pulls.pinned(name, registry.entry, lines.append, anew=False)
    assert pinned == f"{registry.host}/team/moves@{first}"
    second = registry.offer(engine, "team/moves:1", image("after"))
    assert await pulls.pinned(pinned, registry.entry, lines.append, anew=True) == pinned
    assert (await pulls.pinned(name, registry.entry, lines.append, anew=True)).endswith(second)
    assert host.image_config(pinned)["Labels"] == {"text": "before"}
    assert host.image_config(name)["Labels"] == {"text": "after"}
    engine.remove_image(pinned, force=True)
    assert host.image_id(pinned) is None
    assert await pulls.pinned(pinned, registry.entry, lines.append, anew=False) == pinned
    assert host.image_config(pinned)["Labels"] == {"text": "before"}


async def test_what_is_here_serves_when_its_registry_is_gone_and_not_when_it_refuses(
    docker_host: str, host: Engine, engine: docker.APIClient, tmp_path: Path
) -> None:
    (tmp_path / "registry").mkdir()
    registry = Registry(tmp_path / "registry")
    name, pulls = f"{registry.host}/team/stays:1", Pulls(host, call)
    try:
        digest = registry.offer(engine, "team/stays:1", image("stays"))
        lines: list[str] = []
        pinned = await pulls.pinned(name, registry.entry, lines.append, anew=True)
        with pytest.raises(RegistryError, match="is private"):
            await pulls.pinned(name, {}, lines.append, anew=True)
        registry.close()
        assert await pulls.pinned(name, registry.entry, lines.append, anew=True) == pinned
        assert pinned.endswith(digest)
        assert lines[-1].endswith("the one that is here is used")
    finally:
        registry.close()
        registry.remove_images(docker_host)


@pytest.mark.parametrize(
    ("command", "reason"),
    [(["sh", "-c", "exit 4"], "failed with status 4"), (["/none/at/all"], "cannot be run")],
)
async def test_what_is_here_is_not_taken_when_the_command_of_its_password_fails(
    registry: Registry,
    host: Engine,
    engine: docker.APIClient,
    command: list[str],
    reason: str,
) -> None:
    registry.offer(engine, "team/kept:1", image("kept"))
    name, pulls = f"{registry.host}/team/kept:1", Pulls(host, call)
    await pulls.pinned(name, registry.entry, print, anew=False)
    given: Given = {registry.host: {"username": USER, "password": command}}
    with pytest.raises(RegistryError, match=f"password of {registry.host} {reason}"):
        await pulls.pinned(name, given, print, anew=True)


async def test_an_image_of_ones_own_is_held_to_its_id(host: Engine) -> None:
    recipe = Recipe("test", "FROM scratch\nLABEL text=own\nCMD x\n", {})
    host.build(recipe, lambda line: None, Streams(), anew=False)
    found = await Pulls(host, call).pinned(recipe.tag, {}, lambda line: None, anew=True)
    assert found == host.image_id(recipe.tag)
    host.remove_image(recipe.tag)


def test_a_push_gives_the_digest_and_takes_no_name_away(
    registry: Registry, host: Engine, engine: docker.APIClient
) -> None:
    digest = registry.offer(engine, "team/pushed:1", image("pushed"))
    name, target = f"{registry.host}/team/pushed:1", f"{registry.host}/team/elsewhere:2"
    pull(host, name, registry.entry)
    mine = host.image_id(name)
    assert mine is not None
    robot = Login(USER, registry.password, "a test")
    lines: list[str] = []
    assert host.push(mine, target, lines.append, robot, Streams()) == digest
    assert f"pushing {target}" in lines[0]
    assert host.image_id(target) is None
    with pytest.raises(RegistryError, match=f"{target} cannot be pushed: .*is private"):
        host.push(mine, target, lines.append, None, Streams())
    with pytest.raises(RegistryError, match=r"cannot be pushed: .* refused the user nobody"):
        host.push(mine, name, lines.append, Login("nobody", "x", "a test"), Streams())
    assert host.image_id(name) == mine
