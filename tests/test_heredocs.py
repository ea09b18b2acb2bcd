"""Heredocs of Dockerfiles, for builders that do not know them."""

from __future__ import annotations

import json
import subprocess

import pytest

from fal_notebook.dockerfile import instructions
from fal_notebook.heredocs import rewritten


def ran(text: str) -> str:
    """Return what the RUN instruction of a Dockerfile prints."""
    lines = instructions(rewritten(text, {})[0])
    (run,) = [line for line in lines if line.name == "RUN"]
    return subprocess.run(json.loads(run.rest), capture_output=True, text=True, check=True).stdout


def test_a_text_is_a_script_of_the_shell() -> None:
    assert ran('FROM a\nRUN <<EOF\nx=1\necho "$x"\nEOF\n') == "1\n"
    assert ran("FROM a\nRUN cat <<EOF && cat <<'B'\n$((1+1))\nEOF\n$x\nB\n") == "2\n$x\n"
    assert ran("FROM a\nRUN <<EOF\n#!/usr/bin/env python3\nprint('py')\nEOF\n") == "py\n"
    assert ran("FROM a\nRUN cat <<-EOF\n\t\ttabs\n\tEOF\n") == "tabs\n"
    shell = 'FROM a\nSHELL ["/bin/bash", "-c"]\nRUN <<EOF\n[[ a == a ]] && echo bash\nEOF'
    assert ran(shell) == "bash\n"


def test_flags_and_the_numbers_of_lines_stay() -> None:
    text = "FROM a\nRUN --mount=type=cache,target=/x <<EOF\na\nb\nEOF\nUSER x"
    changed, files = rewritten(text, {})
    assert not files
    assert changed.splitlines()[1].startswith('RUN --mount=type=cache,target=/x ["/bin/sh"')
    assert [(i.name, i.line) for i in instructions(changed)][-1] == ("USER", 6)


def test_copied_texts_become_files_of_the_context() -> None:
    text = "FROM a\nARG WHO=me\nCOPY --chown=1 <<one <<'two' /x/\n$WHO\none\n$WHO\ntwo\n"
    changed, files = rewritten(text, {"WHO": "you"})
    assert list(files.values()) == [b"you\n", b"$WHO\n"]
    (copy,) = [i for i in instructions(changed) if i.name == "COPY"]
    assert copy.words() == [*files, "/x/"]
    assert copy.flags == (("chown", "1"),)


def test_what_only_the_builder_knows_is_left_to_it() -> None:
    text = "FROM a\nCOPY <<one /x\n$PATH\none\n"
    assert rewritten(text, {}) == (text, {})


@pytest.mark.parametrize(
    "command",
    [
        "echo $((1 << 2)) <<< x",
        'python3 -c "print(1<<20)"',
        "echo $((1<<N))",
        r"printf 'cat <<EOF\nhello\nEOF\n' > /x.sh",
        'echo "see <<EOF in the docs"',
        'python3 -c "a = \\"<<EOF\\""',
    ],
)
def test_a_dockerfile_without_any_stays(command: str) -> None:
    text = f"FROM a\nRUN {command}\nCMD x\n"
    assert rewritten(text, {}) == (text, {})


def test_a_text_without_an_end_is_left_to_the_builder() -> None:
    text = "FROM a\nRUN <<EOF\necho\nCMD x\n"
    assert rewritten(text, {}) == (text, {})
    assert [i.name for i in instructions("FROM\ta\nRUN\t<<B\nx\nB\n")] == ["FROM", "RUN"]


def test_a_text_may_be_named_as_a_file_is() -> None:
    changed, files = rewritten("FROM a\nCOPY <<robots.txt <<../x /srv/\nhi\nrobots.txt\n", {})
    assert list(files.values()) == [b"hi\n"]
    assert next(iter(files)).endswith("/robots.txt")
    assert "<<../x" in changed
