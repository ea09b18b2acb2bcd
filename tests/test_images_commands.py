"""``image``, ``push`` and ``prune``: what an app's image is, where it goes, and when it may go."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from private_registry import OTHER, USER, Registry
from serving import deployed, own_label

from fal_notebook import cli, sync
from fal_notebook.backends.containers import RUNNER, STATE
from fal_notebook.backends.stored_images import NAMELESS_KEPT, Stored, mark_of, removal
from fal_notebook.client import Client
from fal_notebook.display import ImageView
from fal_notebook.exceptions import BuildError, NotFoundError, OptionError, RegistryError
from fal_notebook.handle import Handle, shared_client

BASE_NAME = "python:{}.{}-slim".format(*sys.version_info)
MINE, OTHERS = "a" * 16, "b" * 16


def fal(*words: str) -> str:
    """Run a command and return all that it shows."""
    return "\n".join(cli.as_lines(cli.run(list(words), "fal-notebook")))


# --- what may go -----------------------------------------------------------------------------
def stored(
    key: str,
    names: tuple[str, ...] = (),
    layers: str = "",
    size: int = 0,
    parent: str = "",
    age: float = 0.0,
    kind: str = "app",
) -> Stored:
    made = time.time() - age
    return Stored(
        f"sha256:{key}", parent and f"sha256:{parent}", names, tuple(layers), size, made, kind
    )


def marked(name: str, *labels: str) -> tuple[str, ...]:
    return (name, *(mark_of(label, name) for label in labels))


BASE = stored("base", ("python:3.11-slim",), "b", 100, kind="")
ENV = stored("env", marked("fal-notebook/env:1", MINE), "be", 150, "base", kind="env")
OLD = stored("old", marked("fal-notebook/app:1", MINE), "beo", 151, "env")
NEW = stored("new", marked("fal-notebook/app:2", MINE), "ben", 152, "env")


def test_what_no_revision_needs_goes_and_what_the_others_are_made_from_stays() -> None:
    found = removal([BASE, ENV, OLD, NEW], MINE, {"fal-notebook/app:2"}, set())
    assert found.names == tuple(sorted(marked("fal-notebook/app:1", MINE)))
    assert (found.images, found.size) == ((OLD,), 1)
    assert found.told == ["fal-notebook/app:1"]


def test_without_apps_all_of_ours_goes_and_nothing_else() -> None:
    found = removal([BASE, ENV, OLD, NEW], MINE, set(), set())
    assert set(found.images) == {ENV, OLD, NEW}
    assert found.size == 50 + 1 + 2
    assert not [name for name in found.names if name.startswith("python")]


def test_what_another_state_folder_uses_loses_our_mark_alone() -> None:
    shared = stored("x", marked("fal-notebook/app:3", MINE, OTHERS), "bx", 110, "base")
    found = removal([BASE, shared], MINE, set(), set())
    assert found.names == (mark_of(MINE, "fal-notebook/app:3"),)
    assert (found.images, found.size) == ((), 0)
    assert removal([BASE, shared], "c" * 16, set(), set()).names == ()


def test_what_any_container_uses_stays_with_what_it_is_made_from() -> None:
    assert removal([BASE, ENV, OLD], MINE, set(), {OLD.id}).names == ()


def test_a_container_on_the_same_base_keeps_nothing_of_ours_that_adds_no_layer() -> None:
    server = stored("user", marked("fal-notebook/user:1", MINE), "b", 100, "step", kind="user")
    others = stored("x", ("other:1",), "bx", 110, "base", kind="")
    found = removal([BASE, server, others], MINE, set(), {others.id})
    assert (found.names, found.images) == (tuple(sorted(server.names)), (server,))


def test_an_image_with_a_name_of_the_users_own_stays_under_it() -> None:
    both = stored("x", (*marked("fal-notebook/app:3", MINE), "my/name:1"), "bx", 110, "base")
    found = removal([BASE, both], MINE, set(), set())
    assert set(found.names) == set(marked("fal-notebook/app:3", MINE))
    assert found.images == ()


def test_what_builds_left_without_a_name_goes_when_it_is_old() -> None:
    old = stored("x", (), "bx", 110, "base", NAMELESS_KEPT + 60)
    young = stored("y", (), "by", 110, "base", 60)
    others = stored("z", (), "bz", 110, "base", NAMELESS_KEPT + 60, kind="")
    assert removal([BASE, old, young, others], MINE, set(), set()).images == (old,)


def test_buildkits_images_without_parents_are_known_by_their_layers() -> None:
    user = stored("user", marked("fal-notebook/user:1", MINE), "bu", 120, kind="user")
    app = stored("app", marked("fal-notebook/app:1", MINE), "bue", 130)
    assert removal([BASE, user, app], MINE, {"fal-notebook/app:1"}, set()).names == ()


# --- with an engine --------------------------------------------------------------------------
@pytest.fixture(scope="module")
def app(containers: Path) -> Iterator[Handle]:
    """An app in a container whose image has a label and a layer of its own."""
    source = "def imaged() -> str:\n    return 'one'\n"
    with deployed(source, requirements=[]) as handle:
        yield handle


def test_image_shows_dockerfiles_layers_sizes_and_digest(
    app: Handle, engine: docker.APIClient
) -> None:
    about = sync.wait(shared_client().image(app.owner, app.name))
    assert about["id"] == engine.inspect_image(about["image"])["Id"]
    assert about["size"] == engine.inspect_image(about["image"])["Size"]
    assert about["labels"]["fal-notebook.image"] == "app"
    assert [text.split()[0] for text in about["dockerfiles"]] == ["FROM"] * 3
    shown = fal("image", app.name)
    assert f"{about['image']}" in shown
    assert about["id"] in shown
    assert "COPY file" in shown
    assert f"FROM {about['image'].replace('app', 'env')[:17]}" in shown
    page = cli.run(["image", app.name], "fal-notebook")._repr_html_()
    assert "<table>" in page
    assert "<pre>FROM" in page


def test_the_commands_of_both_builders_are_shown_as_in_a_dockerfile() -> None:
    made = (
        '/bin/sh -c #(nop)  CMD ["python3"]',
        "/bin/sh -c pip install x",
        "RUN /bin/sh -c pip install y # buildkit",
        "|1 A=1 /bin/sh -c echo $A",
    )
    layers = [{"size": 10_000_000, "command": text} for text in made]
    about = {
        "app": "me/x",
        "revision": 1,
        "image": "i",
        "id": "s",
        "digest": "",
        "size": 5,
        "platform": "linux/amd64",
        "labels": {"<b>": "&"},
        "layers": layers,
        "dockerfiles": [],
    }
    shown = repr(ImageView(about))
    for text in ('CMD ["python3"]', "RUN pip install x", "RUN pip install y", "RUN echo $A"):
        assert f"10.0 MB  {text}\n" in f"{shown}\n"
    assert "&lt;b&gt;" in ImageView(about)._repr_html_()


def test_an_app_without_an_image_and_one_that_is_not_there_are_told(app: Handle) -> None:
    with deployed("def process() -> int:\n    return 1\n", target="local") as local:
        with pytest.raises(OptionError, match=r"runs as a process .* and has no image"):
            fal("image", local.name)
        with pytest.raises(OptionError, match="runs as a process"):
            fal("push", local.name, "ghcr.io/a/b")
    with pytest.raises(NotFoundError, match="there is no app tester/nobody"):
        fal("image", "nobody")


def test_an_image_is_pushed_with_a_password_of_the_environment_or_a_secret(
    app: Handle, registry: Registry, engine: docker.APIClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    to = f"{registry.host}/team/app:1"
    with pytest.raises(RegistryError, match=r"is private .*--username") as none:
        fal("push", app.name, to)
    assert f"docker login {registry.host}" in str(none.value)
    monkeypatch.setenv("REGISTRY_WORD", registry.password)
    login = "--username", USER, "--password-from", "REGISTRY_WORD"
    lines = fal("push", app.name, to, *login).splitlines()
    assert lines[0] == f"pushing {to}"
    name, _, digest = lines[-1].partition("@")
    assert name == to
    auth = {"username": USER, "password": registry.password}
    assert engine.inspect_distribution(to, auth)["Descriptor"]["digest"] == digest
    monkeypatch.delenv("REGISTRY_WORD")
    with pytest.raises(NotFoundError, match="no secret REGISTRY_WORD"):
        fal("push", app.name, to, *login)
    sync.wait(shared_client().set_secret("REGISTRY_WORD", OTHER))
    with pytest.raises(
        RegistryError, match=f"refused the user {USER} .* came from --password-from"
    ):
        fal("push", app.name, to, *login)
    sync.wait(shared_client().set_secret("REGISTRY_WORD", registry.password))
    assert fal("push", app.name, to, *login).endswith(digest)
    assert fal("push", app.name, f"{registry.host}/team/app", *login).endswith(digest)


def test_a_target_that_is_none_and_half_of_a_login_are_refused(app: Handle) -> None:
    for target in ("https://ghcr.io/a", f"a@sha256:{'0' * 64}"):
        with pytest.raises(OptionError, match="write "):
            fal("push", app.name, target)
    with pytest.raises(cli.click.UsageError, match="together"):
        fal("push", app.name, "ghcr.io/a", "--username", "me")


def names(engine: docker.APIClient) -> set[str]:
    return {name for found in engine.images() for name in found["RepoTags"] or ()}


def test_prune_removes_the_image_of_an_earlier_revision_and_only_that(
    app: Handle, engine: docker.APIClient, eventually: Callable[..., Any]
) -> None:
    first = sync.wait(shared_client().image(app.owner, app.name))["image"]
    with deployed(
        "def imaged() -> str:\n    return 'two'\n", requirements=[], takeover=True
    ) as two:
        second = sync.wait(shared_client().image(two.owner, two.name))["image"]
        eventually(lambda: len(two.runners()) <= 1 and first in _would_go())
        shown = fal("prune", "--dry-run")
        assert "would go" in shown
        assert first in shown
        assert second not in shown
        assert first in names(engine)
        shown = fal("prune")
        assert "removed" in shown
        assert first in shown
        assert first not in names(engine)
        assert {second, BASE_NAME} <= names(engine)
        assert two() == "two"
        assert fal("prune").startswith("nothing to remove")
        engine.remove_image(second, force=True)
        with pytest.raises(BuildError, match=r"was removed from the engine; .*force=true"):
            fal("image", two.name)


def _would_go() -> list[str]:
    return list(sync.wait(shared_client().prune_images(dry_run=True))["images"])


def test_prune_removes_a_container_that_nobody_knows_and_no_other_folders(
    app: Handle, containers: Path, engine: docker.APIClient
) -> None:
    image = engine.inspect_image(BASE_NAME)["Id"]
    made = [
        engine.create_container(image, labels={STATE: state, RUNNER: "gone"})["Id"]
        for state in (own_label(), "another")
    ]
    try:
        found = sync.wait(shared_client().prune_images())
        assert len(found["containers"]) == 1
        left = [item["Id"] for item in engine.containers(all=True)]
        assert made[0] not in left
        assert made[1] in left
    finally:
        engine.remove_container(made[1])


def test_where_no_engine_was_used_none_is_asked(own_gateway: Path) -> None:
    assert fal("prune").startswith("nothing to remove")


def test_a_terminal_is_asked_before_anything_goes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[bool] = []

    async def pruned(self: Client, dry_run: bool = False) -> dict[str, Any]:
        asked.append(dry_run)
        return {"images": ["fal-notebook/app:1"], "containers": [], "bytes": 1, "dry_run": dry_run}

    class Terminal:
        def isatty(self) -> bool:
            return True

        def readline(self) -> str:
            return "n\n"

    monkeypatch.setattr(Client, "prune_images", pruned)
    monkeypatch.setattr("sys.stdin", Terminal())
    with pytest.raises(cli.click.Abort):
        fal("prune")
    assert asked == [True]
    assert "removed" in fal("prune", "--yes")
    assert asked == [True, False]
