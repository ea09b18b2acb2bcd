"""Images that say they are made for another architecture: those that fail, those that run."""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import docker
import httpx
import pytest
from serving import deployed

from fal_notebook import deploying
from fal_notebook.container import ContainerImage
from fal_notebook.exceptions import DeployError
from fal_notebook.handle import Handle
from fal_notebook.server_handle import ServerHandle
from fal_notebook.server_image import of_reference

BASE = "python:{}.{}-slim".format(*sys.version_info)
FOREIGN, LABELLED = "fal-notebook-tests/foreign:latest", "fal-notebook-tests/labelled:latest"
# The header of a program for SPARC.
ELF = b"\x7fELF\2\2\1" + b"\0" * 9 + b"\0\2\0\x2b" + b"\0" * 44


def archived(files: dict[str, bytes]) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755
            archive.addfile(entry, io.BytesIO(content))
    return written.getvalue()


@pytest.fixture(scope="module")
def other(engine: docker.APIClient) -> str:
    """The architecture that the engine's machine has not."""
    return "amd64" if engine.version()["Arch"] == "arm64" else "arm64"


@pytest.fixture(scope="module")
def foreign(engine: docker.APIClient, other: str) -> Iterator[str]:
    """An image with one program, which does not run here."""
    layer = archived({"server": ELF})
    layers = {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]}
    command = {"Entrypoint": ["/server"]}
    config = {"architecture": other, "os": "linux", "config": command, "rootfs": layers}
    manifest = [{"Config": "config.json", "RepoTags": [FOREIGN], "Layers": ["layer.tar"]}]
    described = {"config.json": config, "manifest.json": manifest}
    files = {name: json.dumps(content).encode() for name, content in described.items()}
    engine.load_image(archived({**files, "layer.tar": layer}))
    yield FOREIGN
    engine.remove_image(FOREIGN, force=True)


@pytest.fixture(scope="module")
def labelled(engine: docker.APIClient, other: str) -> Iterator[str]:
    """An image whose programs run here, whatever it says."""
    saved = io.BytesIO(b"".join(engine.get_image(BASE)))
    written = io.BytesIO()
    with tarfile.open(fileobj=saved) as old, tarfile.open(fileobj=written, mode="w") as new:
        found = old.extractfile("manifest.json")
        assert found is not None
        manifest = json.load(found)
        of_config = manifest[0]["Config"]
        manifest[0]["RepoTags"] = [LABELLED]
        for entry in old.getmembers():
            if entry.name in ("repositories", "index.json", "oci-layout"):
                continue
            source = old.extractfile(entry) if entry.isfile() else None
            content = source.read() if source is not None else b""
            if entry.name == of_config:
                content = json.dumps({**json.loads(content), "architecture": other}).encode()
            if entry.name == "manifest.json":
                content = json.dumps(manifest).encode()
            entry.size = len(content)
            new.addfile(entry, io.BytesIO(content))
    engine.load_image(written.getvalue())
    assert engine.inspect_image(LABELLED)["Architecture"] == other
    yield LABELLED
    engine.remove_image(LABELLED, force=True)


def misfit(engine: docker.APIClient, other: str) -> str:
    own = engine.version()["Arch"]
    return f"the image is made for {other} and the Docker engine's machine is {own}"


@pytest.mark.parametrize("kind", ["image", "Dockerfile", "program that is not there"])
def test_a_server_for_another_machine_is_named_and_the_old_one_serves(
    containers: Path, engine: docker.APIClient, foreign: str, other: str, kind: str
) -> None:
    images = {
        "image": foreign,
        "Dockerfile": ContainerImage(f"FROM {foreign}\nENV A=b\n"),
        "program that is not there": of_reference(foreign, entrypoint=["serve"]),
    }
    serving = of_reference(BASE, cmd=["python3", "-m", "http.server", "8000"])
    given = {"name": "foreign", "exposed_port": 8000, "wait": True}
    handle = deploying.deploy(image=serving, keep_alive=300, **given)
    assert isinstance(handle, ServerHandle)
    with pytest.raises(DeployError, match=misfit(engine, other)):
        deploying.deploy(image=images[kind], **given)
    assert handle.request("GET", "/").status_code == 200
    handle.delete()


def test_a_function_in_an_image_for_another_machine_is_named(
    containers: Path, engine: docker.APIClient, foreign: str, other: str
) -> None:
    with deployed("def f(x: int): return x + 1", keep_alive=300) as handle:
        with pytest.raises(DeployError, match=misfit(engine, other)):
            deploying.deploy(handle.original, image=foreign, wait=True)
        assert handle(1) == 2


def test_a_base_of_another_machine_than_is_asked_for_is_not_taken_in_its_place(
    containers: Path, other: str
) -> None:
    image = ContainerImage(f"# one\nFROM --platform=linux/{other} {BASE}\nENV A=b\n")
    words = f"line 2 of the Dockerfile says --platform=linux/{other}, and the image {BASE} that is"
    with pytest.raises(DeployError, match=words):
        deploying.deploy(image=image, name="asked", exposed_port=8000, wait=True)
    with pytest.raises(DeployError, match=words), deployed("def h(): return 1", image=image):
        pass


def test_a_base_of_the_machine_that_is_asked_for_is_taken(
    containers: Path, engine: docker.APIClient, labelled: str, other: str
) -> None:
    own = engine.version()["Arch"]
    for platform, base in ((f"linux/{other}/v8", labelled), (f"linux/{own}", BASE)):
        image = ContainerImage(f"FROM --platform={platform} {base}\nENV A=b\n")
        with deployed("def k(x: int): return x + 1", image=image) as handle:
            assert handle(1) == 2


def test_what_runs_runs_whatever_its_image_says(containers: Path, labelled: str) -> None:
    with deployed("def g(x: int): return x + 1", image=labelled) as handle:
        assert isinstance(handle, Handle)
        assert handle(1) == 2
    serving = of_reference(labelled, cmd=["python3", "-m", "http.server", "8000"])
    server = deploying.deploy(
        name="labelled", image=serving, exposed_port=8000, auth="public", wait=True
    )
    assert httpx.get(server.url).status_code == 200
    server.delete()
