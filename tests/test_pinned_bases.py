"""A revision that is built again is built from the images of then, wherever their tags went."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import pytest
from private_registry import Registry
from serving import deployed

from fal_notebook import ContainerImage, settings, sync
from fal_notebook.exceptions import DeployError
from fal_notebook.handle import Handle, shared_client

BASE = "python:{}.{}-slim".format(*sys.version_info)
# What the app of revision 1 reads comes from the base, whose tag moves.
SOURCE = "def text() -> str:\n    return open('/text').read().strip()\n"
OTHER = "def text() -> str:\n    return 'other'\n"
WITH_TEXT = f"FROM {BASE}\nRUN echo {{text}} > /text\n"
OWN = "fal-notebook-test/pinned"

DOCKERFILES = {
    "one": "FROM NAME\nRUN true\n",
    "argument": "ARG TAG=none\nARG FULL=REPOSITORY:${TAG}\nFROM $FULL\nRUN true\n",
    "stages": (
        f"FROM --platform=linux/{os.uname().machine} \\\n  NAME \\\n  AS tools\nRUN true\n"
        f"FROM {BASE} AS last\n"
        "COPY --from=tools /text /text\n"
    ),
    "copied": f"FROM {BASE}\nCOPY --from=NAME \\\n  # the text\n  /text /text\n",
    "mounted": f"FROM {BASE}\nRUN --mount=type=bind,from=NAME,target=/m cp /m/text /text\n",
    "buildkit": "FROM NAME\nRUN --mount=type=tmpfs,target=/x true\n",
}
Offer = Callable[[str], str]


def image(kind: str, name: str, **fields: object) -> ContainerImage:
    """Return an image made of another, in one of several ways."""
    text = DOCKERFILES[kind].replace("NAME", name)
    text = text.replace("REPOSITORY", name.rpartition(":")[0])
    arguments = {"build_args": {"TAG": name.rpartition(":")[2]}} if kind == "argument" else {}
    return ContainerImage.from_dockerfile_str(text, **arguments, **fields)


def forget(engine: docker.APIClient, handle: Handle) -> None:
    """Remove what was built for the revision that serves; its container goes first."""
    about = sync.wait(shared_client().image(handle.owner, handle.name))
    froms = [
        line for line in "\n".join(about["dockerfiles"]).splitlines() if "fal-notebook/" in line
    ]
    ours = [about["image"], *(line.split()[1] for line in froms if line.startswith("FROM"))]
    ids = {engine.inspect_image(name)["Id"] for name in ours if _there(engine, name)}
    for container in engine.containers(all=True):
        if container["ImageID"] in ids:
            engine.remove_container(container["Id"], force=True)
    for listed in engine.images():
        if listed["Id"] in ids:
            for name in listed["RepoTags"] or ():
                engine.remove_image(name)


def _there(engine: docker.APIClient, name: str) -> bool:
    with contextlib.suppress(docker.errors.ImageNotFound):
        return bool(engine.inspect_image(name))
    return False


def make(engine: docker.APIClient, name: str, text: str) -> str:
    """Build an image of this machine alone; return its id."""
    file = io.BytesIO(WITH_TEXT.format(text=text).encode())
    lines = list(engine.build(fileobj=file, tag=name, decode=True, rm=True))
    assert not [line for line in lines if "error" in line]
    return str(engine.inspect_image(name)["Id"])


@pytest.fixture
def local(engine: docker.APIClient, request: pytest.FixtureRequest) -> Iterator[str]:
    """A name for images of this machine alone."""
    name = f"{OWN}:{abs(hash(request.node.name))}"
    yield name
    for tag in (name, f"{name}-kept"):
        with contextlib.suppress(docker.errors.ImageNotFound):
            engine.remove_image(tag, force=True)


@pytest.mark.parametrize("kind", DOCKERFILES)
def test_a_rollback_is_built_from_the_digest_of_then_though_its_tag_moved(
    containers: Path, registry: Registry, engine: docker.APIClient, kind: str
) -> None:
    registry.offer(engine, f"team/{kind}:1", WITH_TEXT.format(text="then"))
    own = image(kind, f"{registry.host}/team/{kind}:1", registries=registry.entry)
    with deployed(SOURCE, image=own, name=kind) as handle:
        assert handle() == "then"
        forget(engine, handle)
        with deployed(OTHER, image=BASE, name=kind):
            registry.offer(engine, f"team/{kind}:1", WITH_TEXT.format(text="now"))
            auth = {"username": "robot", "password": registry.password}
            engine.pull(f"{registry.host}/team/{kind}", "1", auth_config=auth)
            handle.rollback(1)
            assert handle() == "then"


@pytest.mark.parametrize("kind", ["copied", "mounted", "buildkit"])
def test_a_base_of_this_machine_is_held_to_its_id(
    containers: Path, engine: docker.APIClient, local: str, kind: str
) -> None:
    make(engine, local, "then")
    with deployed(SOURCE, image=image(kind, local), name=kind) as handle:
        forget(engine, handle)
        with deployed(OTHER, image=BASE, name=kind):
            engine.tag(local, OWN, local.rpartition(":")[2] + "-kept")
            make(engine, local, "now")
            handle.rollback(1)
            assert handle() == "then"


def test_a_base_that_is_gone_fails_the_rollback_in_one_sentence(
    containers: Path, engine: docker.APIClient, local: str
) -> None:
    then = make(engine, local, os.urandom(8).hex())  # nothing else was ever made of it
    with deployed(SOURCE, image=image("one", local), name="gone") as handle:
        forget(engine, handle)
        with deployed(OTHER, image=BASE, name="gone"):
            make(engine, local, "now")
            with contextlib.suppress(docker.errors.ImageNotFound):
                engine.remove_image(then, force=True)
            said = f"revision 1 is gone and its base {local} cannot be had any more: {then} "
            with pytest.raises(DeployError, match=said):
                handle.rollback(1)
            assert handle() == "other"


def test_a_digest_that_its_registry_lost_fails_the_rollback_too(
    containers: Path, registry: Registry, engine: docker.APIClient
) -> None:
    name = f"{registry.host}/team/lost:1"
    then = os.urandom(8).hex()  # the engine has nothing else of it
    digest = registry.offer(engine, "team/lost:1", WITH_TEXT.format(text=then))
    own = image("one", name, registries=registry.entry)
    with deployed(SOURCE, image=own, name="lost") as handle:
        forget(engine, handle)
        with deployed(OTHER, image=BASE, name="lost"):
            for known in (name, f"{registry.host}/team/lost@{digest}"):
                with contextlib.suppress(docker.errors.ImageNotFound):
                    engine.remove_image(known, force=True)
            registry.lose("team/lost")
            registry.offer(engine, "team/lost:1", WITH_TEXT.format(text="now"))
            said = f"its base {name} cannot be had any more: .*team/lost@{digest} "
            with pytest.raises(DeployError, match=said):
                handle.rollback(1)
            assert handle() == "other"


def test_a_reference_is_held_to_its_image_too(
    containers: Path, engine: docker.APIClient, local: str
) -> None:
    make(engine, local, "then")
    with deployed(SOURCE, image=local, name="reference") as handle:
        forget(engine, handle)
        with deployed(OTHER, image=BASE, name="reference"):
            engine.tag(local, OWN, local.rpartition(":")[2] + "-kept")
            make(engine, local, "now")
            handle.rollback(1)
            assert handle() == "then"


@pytest.fixture
def configured() -> Iterator[Callable[[str], None]]:
    """Set `docker_base`, for this test."""
    yield lambda base: settings.config_file().write_text(f'docker_base = "{base}"\n') and None
    settings.config_file().unlink(missing_ok=True)


def test_the_base_of_the_settings_is_held_too(
    containers: Path, engine: docker.APIClient, local: str, configured: Callable[[str], None]
) -> None:
    make(engine, local, "then")
    configured(local)
    with deployed(SOURCE, name="configured") as handle:
        assert handle() == "then"
        forget(engine, handle)
        configured(BASE)
        with deployed(OTHER, name="configured"):
            engine.tag(local, OWN, local.rpartition(":")[2] + "-kept")
            make(engine, local, "now")
            handle.rollback(1)
            assert handle() == "then"


@pytest.mark.parametrize("base", ["", "python:{version}"])
def test_a_setting_that_names_no_image_is_refused(
    containers: Path, configured: Callable[[str], None], base: str
) -> None:
    configured(base)
    with pytest.raises(DeployError) as caught, deployed(SOURCE, name="refused"):
        pass
    assert f"docker_base is {base!r}" in str(caught.value)
    assert 'write docker_base = "python:{python}-slim"' in str(caught.value)


def test_a_base_of_the_settings_that_is_nowhere_says_which_setting_it_is(
    containers: Path, configured: Callable[[str], None]
) -> None:
    configured("localhost:1/none:1")
    said = "none:1 cannot be pulled: .*the setting docker_base may name another image"
    with pytest.raises(DeployError, match=said), deployed(SOURCE, name="nowhere"):
        pass
