"""Reading Dockerfiles: instructions, stages, what only BuildKit knows."""

from __future__ import annotations

import pytest

from fal_notebook import stages
from fal_notebook.dockerfile import instructions, mounts, needs_buildkit, replaced

TEXT = """# syntax=docker/dockerfile:1
ARG BASE=python:3.11-slim
FROM ${BASE} AS build

# a comment
RUN --mount=type=secret,id=key --mount=type=cache,target=/root pip \\
  # a comment in between

  install \\
  six
copy --chown=1:1 a "b c" /d
COPY ["x y", "/z"]
COPY --from=nginx:1 /a /b
RUN <<EOF
COPY not this
EOF
FROM build
"""


def test_instructions_are_read_with_continuations_flags_and_lines() -> None:
    found = [(i.name, i.line, i.words()) for i in instructions(TEXT)]
    assert found == [
        ("ARG", 2, ["BASE=python:3.11-slim"]),
        ("FROM", 3, ["${BASE}", "AS", "build"]),
        ("RUN", 6, ["pip", "install", "six"]),
        ("COPY", 11, ["a", "b c", "/d"]),
        ("COPY", 12, ["x y", "/z"]),
        ("COPY", 13, ["/a", "/b"]),
        ("RUN", 14, ["<<EOF"]),
        ("FROM", 17, ["build"]),
    ]
    assert mounts(instructions(TEXT)[2])[0] == {"type": "secret", "id": "key"}
    assert instructions(TEXT)[6].heredocs[0].text == "COPY not this\n"


def test_the_escape_character_can_be_another() -> None:
    _, copy = instructions("# escape=`\nFROM a\nCOPY a `\n  b\\ c:\\\n")
    assert copy.rest.split() == ["a", "b\\", "c:\\"]


@pytest.mark.parametrize(
    ("line", "needed"),
    [
        ("RUN --mount=type=cache,target=/x pip", True),
        ("RUN cat <<EOF\nx\nEOF", True),
        ("RUN cat <<< word", False),
        ("COPY --chown=1 a b", False),
        ("COPY --link a b", True),
        ("COPY --chmod=755 a b", True),
        ("RUN pip install --mount=x", False),
    ],
)
def test_what_the_classic_builder_does_not_know_is_found(line: str, needed: bool) -> None:
    assert needs_buildkit(f"FROM a\n{line}") == needed


@pytest.mark.parametrize(
    ("text", "value"),
    [("$A/x", "1/x"), ("${A}x", "1x"), ("${B:-2}", "2"), ("${A:+3}", "3"), (r"\$A", "$A")],
)
def test_variables_are_replaced(text: str, value: str) -> None:
    assert replaced(text, {"A": "1"}) == value


USED = """\
ARG BASE=python
FROM $BASE AS base
RUN one
FROM base AS Dev
RUN exit 1
FROM base AS build
RUN two
FROM scratch AS files
RUN three
FROM base
COPY --from=Build /a /a
RUN --mount=type=bind,from=files,target=/f four
"""


def test_stages_that_nothing_needs_are_left_out_and_lines_keep_their_numbers() -> None:
    lines = stages.without_unused(USED, {}).splitlines()
    assert lines == [*USED.splitlines()[:3], "", "", *USED.splitlines()[5:]]


@pytest.mark.parametrize(
    "text",
    [
        "FROM a\nRUN one\nFROM b\nCOPY --from=0 /a /a\n",
        "FROM a AS x\nFROM b\nARG X=x\nCOPY --from=$X /a /a\n",
        "FROM a AS x\nFROM b\nONBUILD COPY --from=x /a /a\n",
        "FROM a AS x\nFROM x AS y\nFROM y\n",
        "FROM a\nRUN one\n",
        "# nothing\n",
    ],
)
def test_a_dockerfile_with_nothing_to_leave_out_stays_as_it_is(text: str) -> None:
    assert stages.without_unused(text, {}) == text
