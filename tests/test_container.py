"""ContainerImage: what describes an image, and that credentials stay where they are."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from fal_notebook.container import ContainerImage
from fal_notebook.exceptions import OptionError

PASSWORD = "hunter2-registry"
SECRET = "hunter2-build"


@pytest.fixture
def image() -> ContainerImage:
    return ContainerImage.from_dockerfile_str(
        "FROM python:3.11-slim\nRUN true",
        build_args={"A": "1"},
        registries={"ghcr.io": {"username": "me", "password": PASSWORD}},
        secrets={"TOKEN": SECRET},
        cmd=["python", "-m", "server"],
        context_dir=Path("/src"),
    )


def test_a_byte_order_mark_is_no_part_of_a_dockerfile(tmp_path: Path) -> None:
    path = tmp_path / "Dockerfile"
    path.write_bytes(b"\xef\xbb\xbfFROM scratch\n")
    assert ContainerImage.from_dockerfile(path).dockerfile_str == "FROM scratch\n"


def test_the_builder_can_read_credentials(image: ContainerImage) -> None:
    assert image.registries["ghcr.io"].password.get_secret_value() == PASSWORD
    assert image.secrets["TOKEN"].get_secret_value() == SECRET


@pytest.mark.parametrize("dumps", [pickle.dumps, cloudpickle.dumps])
def test_credentials_never_travel_with_a_pickle(image: ContainerImage, dumps: Any) -> None:
    pickled = dumps({"image": image, "registry": image.registries["ghcr.io"]})
    assert PASSWORD.encode() not in pickled
    assert SECRET.encode() not in pickled
    copied = pickle.loads(pickled)["image"]
    assert copied.dockerfile_str == image.dockerfile_str
    assert copied.registries["ghcr.io"].username == "me"
    assert copied.registries["ghcr.io"].password.get_secret_value() == ""
    assert list(copied.secrets) == ["TOKEN"]


def test_credentials_are_neither_shown_nor_dumped(image: ContainerImage) -> None:
    dumped = json.dumps(image.model_dump(mode="json"))
    for text in (repr(image), str(image), dumped, image.model_dump_json()):
        assert PASSWORD not in text
        assert SECRET not in text


def test_a_copy_in_this_process_keeps_them(image: ContainerImage) -> None:
    assert copy.deepcopy(image).secrets["TOKEN"].get_secret_value() == SECRET


def test_a_dumped_image_can_be_made_again(image: ContainerImage) -> None:
    fields = image.model_dump(mode="json", exclude_unset=True)
    again = ContainerImage(**fields)
    assert (again.cmd, again.context_dir) == (["python", "-m", "server"], "/src")
    assert again.model_dump(exclude_unset=True) == image.model_dump(exclude_unset=True)


def test_a_dockerfile_is_read_from_its_path(tmp_path: Path) -> None:
    path = tmp_path / "Dockerfile"
    path.write_text("# syntax=docker/dockerfile:1\nARG V=3.11\nfrom python:$V\n")
    image = ContainerImage.from_dockerfile(path, build_args={"V": "3.12"})
    assert image.dockerfile_str == path.read_text()


def test_a_missing_dockerfile_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"cannot read the Dockerfile .*No such file"):
        ContainerImage.from_dockerfile(tmp_path / "Dockerfile")


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"dockerfile_str": ""}, "the text of a Dockerfile, with a FROM line"),
        ({"dockerfile_str": "RUN true"}, "with a FROM line"),
        ({"registries": {"h": {"username": "me"}}}, "registries is not allowed"),
        ({"registries": {"h": {"username": "me", "password": ""}}}, "registries is not allowed"),
        ({"registries": {"h": {"password": PASSWORD}}}, "both given"),
        ({"secrets": {"A": 1}}, "secrets is not allowed"),
        ({"build_args": {"A": 1}}, "build_args is not allowed: a dict of text to text"),
        ({"build_args": {"A B": "1"}}, "a name is made of letters, digits and '_', and 'A B' is"),
        ({"secrets": {"a,b": "1"}}, "'-' and '.', and 'a,b' is none"),
        ({"cmd": 3}, "cmd=3 is not allowed: one text or a list of texts"),
        ({"cmd": "a 'b"}, "cut into words as a shell does, and has a quote that has no end; corr"),
        ({"entrypoint": "a \\"}, "and has a backslash with nothing behind it; correct that, or"),
        ({"cmd": " "}, "cmd=' ' is not allowed: there is no word in it"),
        ({"dockerignore": "*.pyc"}, "dockerignore='*.pyc' is not allowed: a list of patterns"),
        ({"docker_ignore": []}, "unknown option 'docker_ignore'; did you mean 'dockerignore'?"),
    ],
)
def test_bad_fields_are_refused_with_one_sentence(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(OptionError) as refusal:
        ContainerImage(**{"dockerfile_str": "FROM a", **fields})
    assert sentence in str(refusal.value)
    assert PASSWORD not in str(refusal.value)


def test_what_has_no_effect_is_accepted() -> None:
    ContainerImage(
        "FROM a", builder="depot", compression="zstd", force_compression=True, use_isolate=False
    )


def test_add_dockerignore_changes_the_image_as_in_fal() -> None:
    image = ContainerImage("FROM a")
    image.add_dockerignore(patterns=["*.pyc"])
    assert image.dockerignore == ["*.pyc"]
    assert image.add_dockerignore(path=Path("ignore")) is image
    assert image.dockerignore_path == "ignore"
    assert set(image.model_dump(exclude_unset=True)) == {
        "dockerfile_str",
        "dockerignore",
        "dockerignore_path",
    }


@pytest.mark.parametrize("arguments", [{}, {"patterns": ["a"], "path": "b"}])
def test_add_dockerignore_takes_exactly_one(arguments: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="exactly one of patterns and path"):
        ContainerImage("FROM a").add_dockerignore(**arguments)


def test_an_image_cannot_be_assigned_to() -> None:
    with pytest.raises(ValueError, match="frozen"):
        ContainerImage("FROM a").cmd = "x"  # type: ignore[misc]
