"""Apps from a private registry, from the deploy to the answer."""

from __future__ import annotations

import base64
import contextlib
import json
import sys
from pathlib import Path

import docker
import httpx
import pytest
from private_registry import OTHER, PASSWORD, USER, Registry
from serving import containers_of

from fal_notebook import ContainerImage, discovery, settings, sync
from fal_notebook.deploying import deploy
from fal_notebook.exceptions import DeployError, NotFoundError
from fal_notebook.handle import Handle, shared_client

BASE = "python:{}.{}-slim".format(*sys.version_info)
SERVER = """FROM {base}
RUN echo {text} > /index.html
CMD ["python3", "-m", "http.server", "8000", "--directory", "/", "--bind", "0.0.0.0"]
"""


@pytest.fixture(scope="module")
def name(registry: Registry, engine: docker.APIClient) -> str:
    """A server's image that lies in the private registry."""
    registry.offer(engine, "team/server:1", SERVER.format(base=BASE, text="one"))
    return f"{registry.host}/team/server:1"


def served(handle: Handle) -> str:
    url = f"{sync.wait(shared_client().url())}/run/{handle.owner}/{handle.name}/index.html"
    headers = {"authorization": f"Bearer {discovery.ensure(settings.state_folder()).token}"}
    return httpx.get(url, headers=headers, timeout=60, trust_env=False).text.strip()


def image_of(handle: Handle) -> str:
    return str(sync.wait(shared_client().image(handle.owner, handle.name))["image"])


def test_a_private_image_is_refused_until_docker_login_and_then_held_to_its_digest(
    containers: Path,
    registry: Registry,
    name: str,
    engine: docker.APIClient,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    config = tmp_path_factory.mktemp("login")
    monkeypatch.setenv("DOCKER_CONFIG", str(config))  # the gateway starts with it
    options = {"image": name, "exposed_port": 8000, "name": "logged-in", "wait": True}
    with pytest.raises(DeployError, match=f"is private .*`docker login {registry.host}`"):
        deploy(**options)
    secret = base64.b64encode(f"{USER}:{registry.password}".encode()).decode()
    (config / "config.json").write_text(json.dumps({"auths": {registry.host: {"auth": secret}}}))
    handle = deploy(**options)
    assert served(handle) == "one"
    pinned = image_of(handle)
    assert pinned.startswith(f"{registry.host}/team/server@sha256:")
    registry.offer(engine, "team/server:1", SERVER.format(base=BASE, text="two"))
    for container in containers_of(engine, "logged-in"):
        engine.kill(container["Id"])
    for name_of_it in (name, pinned):
        with contextlib.suppress(docker.errors.ImageNotFound):
            engine.remove_image(name_of_it, force=True)
    assert served(handle) == "one"
    assert image_of(handle) == pinned
    moved = deploy(**options, force=True)
    assert served(moved) == "two"
    assert image_of(moved) != pinned
    moved.delete()


def test_an_image_of_one_line_is_a_reference_and_fetched_again_with_its_credentials(
    containers: Path, registry: Registry, engine: docker.APIClient
) -> None:
    registry.offer(engine, "team/line:1", SERVER.format(base=BASE, text="line"))
    image = ContainerImage(
        f"# syntax of one line\nFROM {registry.host}/team/line:1\n",
        registries={registry.host: {"username": USER, "password": registry.password}},
    )
    handle = deploy(image=image, exposed_port=8000, name="one-line", wait=True)
    assert served(handle) == "line"
    pinned = image_of(handle)
    assert pinned.startswith(f"{registry.host}/team/line@sha256:")
    for container in containers_of(engine, "one-line"):
        engine.kill(container["Id"])
    for name_of_it in (f"{registry.host}/team/line:1", pinned):
        with contextlib.suppress(docker.errors.ImageNotFound):
            engine.remove_image(name_of_it, force=True)
    assert served(handle) == "line"
    handle.delete()


def test_a_private_base_is_built_on_with_a_token_that_the_kernel_gives_anew(
    containers: Path, registry: Registry, name: str, engine: docker.APIClient
) -> None:
    tokens = [PASSWORD, OTHER, OTHER]  # the second one has expired at the registry
    asked: list[str] = []

    def token() -> str:
        asked.append(tokens.pop())
        return asked[-1]

    registry.offer(engine, "team/base:1", f"FROM {BASE}\nRUN echo private > /base\n")
    image = ContainerImage(
        f"FROM {registry.host}/team/base:1\n",
        registries={registry.host: {"username": USER, "password": token}},
    )

    def base() -> str:
        return Path("/base").read_text().strip()

    with pytest.raises(DeployError, match=f"refused the user {USER}") as caught:
        deploy(base, image=image, wait=True)
    assert asked == [OTHER, OTHER]
    assert OTHER not in str(caught.value)
    tokens[:] = [PASSWORD, OTHER]
    handle = deploy(base, image=image, wait=True)
    assert handle() == "private"
    assert asked[2:] == [OTHER, PASSWORD]
    for file in ("store.db", "store.db-wal", "gateway.log"):
        path = containers / file
        assert not path.exists() or PASSWORD.encode() not in path.read_bytes()
    history = engine.history(image_of(handle))
    assert PASSWORD not in str(history)
    handle.delete()


def test_a_secret_gives_the_password_of_a_built_image(
    containers: Path, registry: Registry, engine: docker.APIClient
) -> None:
    registry.offer(engine, "team/secret:1", f"FROM {BASE}\nRUN echo kept > /base\n")
    image = ContainerImage(
        f"FROM {registry.host}/team/secret:1\n",
        registries={registry.host: {"username": USER, "password": "$PULL_WORD"}},
    )

    def kept() -> str:
        return Path("/base").read_text().strip()

    with pytest.raises(NotFoundError, match="no secret PULL_WORD"):
        deploy(kept, image=image, wait=True)
    sync.wait(shared_client().set_secret("PULL_WORD", registry.password))
    handle = deploy(kept, image=image, wait=True)
    assert handle() == "kept"
    handle.delete()


def test_buildkit_and_a_fresh_token_of_a_command_serve_a_private_base(
    containers: Path, registry: Registry, engine: docker.APIClient, tmp_path: Path
) -> None:
    registry.offer(engine, "team/kit:1", f"FROM {BASE}\nRUN echo built > /base\n")
    token = tmp_path / "token"
    image = ContainerImage(
        f"FROM {registry.host}/team/kit:1\nRUN --mount=type=tmpfs,target=/x cp /base /x\n",
        registries={registry.host: {"username": USER, "password": ["cat", str(token)]}},
    )

    def built() -> str:
        return Path("/base").read_text().strip()

    with pytest.raises(DeployError, match=r"the command cat .* failed .*No such file"):
        deploy(built, image=image, wait=True)
    token.write_text(registry.password)
    handle = deploy(built, image=image, wait=True)
    assert handle() == "built"
    handle.delete()


def test_an_unknown_tag_fails_the_deploy_with_one_sentence(
    containers: Path, registry: Registry, name: str
) -> None:
    entry = {registry.host: {"username": USER, "password": registry.password}}
    image = ContainerImage(f"FROM {registry.host}/team/server:none\n", registries=entry)
    with pytest.raises(DeployError, match="has no such repository or tag; check the name"):
        deploy(image=image, exposed_port=8000, name="unknown", wait=True)
