"""Which images a Dockerfile is made from, and how it names them for ever."""

from __future__ import annotations

import pytest

from fal_notebook import dockerfile
from fal_notebook.base_images import bases, default, held, of_dockerfile
from fal_notebook.exceptions import BuildError, SettingError
from fal_notebook.platforms import refuse_other

TEXT = """# syntax=docker/dockerfile:1
ARG BASE=python:3.11-slim
FROM ${BASE} AS build
copy --from=nginx:1 a "b c" /d
FROM build
"""
HELD = {"a": "a@1", "b:2": "b@2"}


def test_bases_are_images_and_no_stages() -> None:
    assert of_dockerfile(TEXT, {}) == ["python:3.11-slim", "nginx:1"]
    assert of_dockerfile(TEXT, {"BASE": "other"}) == ["other", "nginx:1"]
    assert of_dockerfile("FROM scratch\nFROM --platform=linux/amd64 a AS b\nFROM B", {}) == ["a"]
    text = "FROM a\nCOPY --from=0 /x /y\nRUN --mount=from=c x"
    assert of_dockerfile(text, {}) == ["a", "c"]


def test_bases_are_those_of_what_an_app_brings_or_that_of_the_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert bases("a:1", "3.11") == ["a:1"]
    assert bases({"dockerfile_str": "ARG N\nFROM a:$N\n", "build_args": {"N": "2"}}, "3.11") == [
        "a:2"
    ]
    assert bases({"dockerfile_str": "FROM a AS unused\nFROM b\n"}, "3.11") == ["b"]
    assert bases(None, "3.11") == ["python:3.11-slim"]
    monkeypatch.setenv("FAL_NOTEBOOK_DOCKER_BASE", "own/base:{python}")
    assert bases(None, "3.12") == ["own/base:3.12"]
    monkeypatch.setenv("FAL_NOTEBOOK_DOCKER_BASE", "")
    assert bases("a:1", "3.12") == ["a:1"]


@pytest.mark.parametrize("base", ["", " ", "python:{version}", "{", "{0}", "{python.x}", "a b"])
def test_a_setting_that_names_no_image_is_refused(
    monkeypatch: pytest.MonkeyPatch, base: str
) -> None:
    monkeypatch.setenv("FAL_NOTEBOOK_DOCKER_BASE", base)
    with pytest.raises(
        SettingError, match=r"docker_base is '.*', which is no .*; write docker_base = "
    ):
        default("3.12")


@pytest.mark.parametrize(
    ("text", "instead"),
    [
        ("FROM a", "FROM a@1"),
        ("from --platform=linux/arm64 a as x", "FROM --platform=linux/arm64 a@1 as x"),
        ("ARG N=2\nFROM b:$N AS a\nFROM a", "ARG N=2\nFROM b@2 AS a\nFROM a"),
        ("ARG A\nARG B=${A:-a}\nFROM $B", "ARG A\nARG B=${A:-a}\nFROM a@1"),
        ("FROM \\\n  # why\n  a", "\n\nFROM a@1"),
        (
            "FROM scratch\nCOPY --from=a --link /x \\\n /a",
            "FROM scratch\n\nCOPY --from=a@1 --link /x  /a",
        ),
        (
            "FROM c\nRUN --mount=type=bind,from=b:2,target=/a --mount=from=a,target=/b:2 \\\n"
            "  cat <<-E && \\\n true\n\ta\n\tE\nRUN a",
            "FROM c\n\n\nRUN --mount=type=bind,from=b@2,target=/a --mount=from=a@1,target=/b:2 "
            "cat <<-E &&  true\n\ta\n\tE\nRUN a",
        ),
        ("# escape=`\nFROM a\nRUN dir `\n c:\\", "# escape=`\nFROM a@1\nRUN dir `\n c:\\"),
        ("FROM other\nCOPY a /a", "FROM other\nCOPY a /a"),
        ("FROM c AS A\nCOPY --from=a / /\nFROM b:2", "FROM c AS A\nCOPY --from=a / /\nFROM b@2"),
    ],
)
def test_base_images_are_named_otherwise_and_nothing_else(text: str, instead: str) -> None:
    assert held(text, {}, HELD) == f"{instead}\n"
    before, after = dockerfile.instructions(text), dockerfile.instructions(instead)
    assert [(i.name, i.heredocs, i.end) for i in before] == [
        (i.name, i.heredocs, i.end) for i in after
    ]


# --- platforms -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("FROM --platform=linux/arm64 a", 1),
        ("# for others\nfrom --platform=linux/aarch64 \\\n a as b", 2),
        ("FROM a\nFROM --platform=linux/arm64/v8 b", 2),
        ("FROM --platform=arm64 a", 1),
        ("FROM --platform=linux/386 a", 1),
        ("ARG P=linux/arm64\nFROM --platform=$P a", 2),
        ("ARG P\nFROM --platform=${P:-linux/arm64} a", 2),
    ],
)
def test_a_base_that_is_made_for_another_platform_is_refused(text: str, line: int) -> None:
    with pytest.raises(
        BuildError, match=f"^line {line} of the Dockerfile says --platform="
    ) as told:
        refuse_other(text, {}, {"a": "amd64", "b": "amd64"})
    assert "is made for amd64: leave out --platform, or" in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "text",
    [
        "FROM a",
        "FROM --platform=linux/amd64 a",
        "FROM --platform=linux/x86_64 a",
        "FROM --platform=LINUX/AMD64/v2 a",
        "FROM --platform=linux a",
        "FROM --platform=$BUILDPLATFORM a",
        "FROM --platform=${TARGETPLATFORM} a",
        "ARG TARGETARCH\nFROM --platform=linux/$TARGETARCH a",
        "ARG P=linux/arm64\nFROM --platform=$P a",
        "FROM --platform=linux/arm64 scratch",
        "FROM --platform=linux/arm64/v8 other",
        "FROM a AS first\nFROM --platform=linux/arm64 first",
        "FROM --platform=linux/arm64 a AS unused\nFROM a",
        "FROM --platform=linux/arm64 nobody-knows",
    ],
)
def test_a_base_that_is_made_for_the_platform_that_is_asked_for_is_taken(text: str) -> None:
    refuse_other(text, {"P": "linux/amd64"}, {"a": "amd64", "other": "arm64"})
