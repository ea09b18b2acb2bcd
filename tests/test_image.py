"""Recipes of images: Dockerfile, context and tag from data alone."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

from fal_notebook import image

NOTHING = image.Tree(Path("/nowhere"), "k")


def recipe(requirements: list[list[str]], base_id: str = "sha256:1") -> image.Recipe:
    layers = [image.Layer(tuple(lines)) for lines in requirements]
    return image.environment("python:3.11-slim", base_id, layers)


def served(key: str = "k", base_id: str = "sha256:1") -> image.Recipe:
    return image.served("environment", base_id, image.Tree(Path("/nowhere"), key), NOTHING)


def test_the_environment_installs_each_layer_and_nothing_of_the_runner() -> None:
    lines = recipe([["numpy==2.0"], ["torch"]]).dockerfile.splitlines()
    assert lines[0] == "FROM python:3.11-slim"
    installed = [line for line in lines if line.startswith("RUN")]
    assert [line.rpartition("/")[2] for line in installed] == [
        "requirements-1.txt",
        "requirements-2.txt",
    ]
    assert "/opt/fal/runner" not in recipe([["numpy==2.0"]]).dockerfile


def test_the_runner_comes_upon_an_environment() -> None:
    lines = served().dockerfile.splitlines()
    assert lines[0] == "FROM environment"
    assert lines[-2:] == [
        "COPY libraries /opt/fal/libraries",
        "COPY runner /opt/fal/runner",
    ]


def test_an_image_without_requirements_runs_nothing() -> None:
    assert "RUN" not in recipe([]).dockerfile


def test_the_tag_follows_requirements_libraries_and_base() -> None:
    others = [recipe([["a"]]), recipe([["b"]], base_id="sha256:2"), served()]
    assert recipe([["b"]]).tag == recipe([["b"]]).tag not in [other.tag for other in others]
    assert served().tag == served().tag not in (served("other").tag, served("k", "sha256:2").tag)


def test_the_payload_is_the_only_thing_in_an_apps_own_layer() -> None:
    tag = recipe([]).tag
    made = image.app(tag, NOTHING)
    assert made.dockerfile.splitlines()[0] == f"FROM {tag}"
    assert made.dockerfile.count("COPY") == 1
    assert made.tag != image.app(tag, image.Tree(Path("/nowhere"), "other")).tag


def test_files_of_an_app_lie_below_its_payload() -> None:
    files = image.Tree(Path("/nowhere"), "files")
    made = image.app("base", NOTHING, files)
    assert [line for line in made.dockerfile.splitlines() if line.startswith("COPY")] == [
        "COPY files /opt/fal/files",
        "COPY payload /opt/fal/payload",
    ]
    assert made.tag != image.app("base", NOTHING, image.Tree(Path("/nowhere"), "other")).tag


def test_the_context_can_be_read_by_every_user_and_is_nobodys(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir(mode=0o700)
    (tmp_path / "inner" / "file").write_text("x")
    (tmp_path / "inner" / "file").chmod(0o600)
    buffer = io.BytesIO()
    image.app("base", image.Tree(tmp_path, "k")).write_context(buffer)
    with tarfile.open(fileobj=io.BytesIO(buffer.getvalue())) as archive:
        modes = {entry.name: entry.mode & 0o777 for entry in archive}
        assert {(entry.uid, entry.uname) for entry in archive} == {(0, "")}
        assert (
            archive.extractfile("Dockerfile").read()
            == image.app("base", NOTHING).dockerfile.encode()
        )
    assert modes["payload/inner"] == 0o755
    assert modes["payload/inner/file"] == 0o644


def test_texts_of_a_dockerfile_can_be_read_by_every_user(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        image.UserImage("FROM a\nCOPY <<EOT /w/here.txt\nhi\nEOT\n").write_folder(tmp_path)
    finally:
        os.umask(before)
    folder, line, file = sorted(tmp_path.rglob("*"))
    assert file.read_text() == "hi\n"
    assert [path.stat().st_mode & 0o777 for path in (folder, line, file)] == [0o755, 0o755, 0o644]
