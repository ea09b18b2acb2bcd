"""Build contexts: what of a folder goes to the builder, and as what."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from fal_notebook import file_archive
from fal_notebook.build_context import pack
from fal_notebook.container import ContainerImage
from fal_notebook.exceptions import OptionError
from fal_notebook.ignore_rules import DEFAULTS, IgnoreRules, read_patterns


def tree(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(path)
    return root


def packed(root: Path, dockerfile: str = "COPY . .", **fields: Any) -> list[str]:
    """Return the names of the files that are packed."""
    content = pack(ContainerImage(f"FROM a\n{dockerfile}", **fields), str(root))
    if not content:
        return []
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return [entry.name for entry in archive if not entry.isdir()]


@pytest.mark.parametrize(
    ("patterns", "left_out", "kept"),
    [
        (["*.pyc"], ["a.pyc"], ["b/a.pyc", "a.py"]),
        (["**/*.pyc"], ["a.pyc", "b/c/a.pyc"], ["a.py"]),
        (["/a"], ["a", "a/b"], ["b/a", "ab"]),
        (["a/"], ["a", "a/b/c"], ["b"]),
        (["a/**"], ["a/b", "a/b/c"], ["a"]),
        (["a/**/z"], ["a/z", "a/b/c/z"], ["z"]),
        (["*", "!keep", "!b/c"], ["x", "b", "b/d"], ["keep", "keep/x", "b/c"]),
        (["!a", "a"], ["a"], []),
        (["**", "!**/*.py"], ["a.md", "b/a.md"], ["a.py", "b/a.py"]),
        (["a?c", "[x-y].txt"], ["abc", "x.txt"], ["ac", "a/c", "z.txt"]),
        (["./a", "b/../c"], ["a", "c"], ["b"]),
        ([r"\*", "a.b"], ["*", "a.b"], ["x", "aXb"]),
        (["[", "a[b"], ["[", "a[b"], ["b"]),
        ([".", "", " "], [], ["a"]),
        (DEFAULTS, [".git/x", "x/.env", "Dockerfile.dev", "a/b.md", "venv/x"], ["a.py", "env"]),
    ],
)
def test_rules_are_those_of_docker(
    patterns: list[str], left_out: list[str], kept: list[str]
) -> None:
    rules = IgnoreRules(patterns)
    assert [path for path in [*left_out, *kept] if rules.leaves_out(path)] == left_out


def test_an_ignore_file_may_have_comments_and_a_byte_order_mark() -> None:
    assert read_patterns("\ufeffa\n# no\n\n  b \n!c\r\n") == ["a", "b", "!c"]


def test_the_rules_that_are_given_first_count(tmp_path: Path) -> None:
    tree(tmp_path, "a", "b", "c", "x.md", "rules")
    assert packed(tmp_path) == ["a", "b", "c", "rules"]  # the defaults
    (tmp_path / ".dockerignore").write_text("c\nrules\n.dockerignore")
    assert packed(tmp_path) == ["a", "b", "x.md"]
    (tmp_path / "rules").write_text("b\nrules\n.dockerignore\n")
    assert packed(tmp_path, dockerignore_path="rules") == ["a", "c", "x.md"]
    given: dict[str, Any] = {"dockerignore_path": "rules", "dockerignore": ["*", "!a"]}
    assert packed(tmp_path, **given) == ["a"]


def test_what_is_in_again_is_found_in_folders_that_are_left_out(tmp_path: Path) -> None:
    tree(tmp_path, "data/big", "data/small/one", "other/x")
    assert packed(tmp_path, dockerignore=["data", "!data/small"]) == ["data/small/one", "other/x"]
    assert packed(tmp_path, dockerignore=["*", "!**/one"]) == ["data/small/one"]


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("RUN true", []),
        ("COPY --from=other src /x", []),
        ("ADD https://example.com/a.tar.gz /x", []),
        ("COPY src /x", ["src/a.py", "src/deep/b.py"]),
        ("COPY /src/deep/ /x", ["src/deep/b.py"]),
        ("COPY src/*.py one.txt /x", ["one.txt", "src/a.py"]),
        ("COPY *.txt ./", ["one.txt", "two.txt"]),
        ('COPY ["one.txt", "/x"]', ["one.txt"]),
        ("ARG NAME=one\nCOPY ${NAME}.txt /x", ["one.txt"]),
        ("RUN --mount=type=bind,source=two.txt,target=/x cat /x", ["two.txt"]),
        ("RUN --mount=type=cache,target=/x true", []),
        ("COPY $HOME/one.txt /x", ["one.txt", "src/a.py", "src/deep/b.py", "two.txt"]),
    ],
)
def test_only_what_the_dockerfile_takes_is_packed(
    tmp_path: Path, line: str, names: list[str]
) -> None:
    tree(tmp_path, "one.txt", "two.txt", "src/a.py", "src/deep/b.py")
    assert packed(tmp_path, line) == names


def test_a_build_argument_says_which_file_is_taken(tmp_path: Path) -> None:
    tree(tmp_path, "one", "two")
    assert packed(tmp_path, "ARG NAME=one\nCOPY $NAME x", build_args={"NAME": "two"}) == ["two"]


def test_the_context_is_a_folder_of_its_own_or_that_of_the_notebook(tmp_path: Path) -> None:
    tree(tmp_path, "one", "sub/two")
    assert packed(tmp_path, context_dir="sub") == ["two"]
    assert packed(Path("/"), context_dir=tmp_path / "sub") == ["two"]


def test_equal_files_make_equal_archives_that_keep_modes_and_links(tmp_path: Path) -> None:
    for root in (tmp_path / "a", tmp_path / "b"):
        tree(root, "run.sh", "deep/x")
        (root / "run.sh").chmod(0o750)
        (root / "link").symlink_to("run.sh")
        os.link(root / "run.sh", root / "same")
    os.utime(tmp_path / "b" / "run.sh", (1, 1))
    image = ContainerImage("FROM a\nCOPY . .")
    first, second = (pack(image, str(tmp_path / name)) for name in "ab")
    assert first == second
    with tarfile.open(fileobj=io.BytesIO(first)) as archive:
        entries = {entry.name: entry for entry in archive}
        assert entries["run.sh"].mode & 0o777 == 0o750
        assert entries["link"].linkname == "run.sh"
        assert archive.extractfile("same").read() == b"run.sh"  # type: ignore[union-attr]
        assert {(e.uid, e.uname) for e in entries.values()} == {(0, "")}
        assert min(e.mtime for e in entries.values()) > 315532800  # 1980, for zip files


def test_a_link_on_the_way_to_a_file_brings_what_it_leads_to(tmp_path: Path) -> None:
    tree(tmp_path, "real/file")
    (tmp_path / "link").symlink_to("real")
    assert packed(tmp_path, "COPY link/file /x") == ["link", "real/file"]


@pytest.mark.parametrize(
    ("line", "refused"),
    [
        ("COPY gone /x", r"COPY gone \(line 2 of the Dockerfile\) takes gone, which is not in"),
        ("RUN a\n\nADD *.gone x", r"ADD \*.gone \(line 4 of the Dockerfile\) takes \*.gone"),
        ("COPY .env /x", "COPY .env .* takes .env, which the ignore rules leave out"),
        ("COPY pipe /x", r"COPY pipe \(line 2 .*\) takes pipe, a pipe or a socket"),
        ("COPY ../x /x", "COPY ../x .* lies above the build context; .* set context_dir"),
    ],
)
def test_what_cannot_be_copied_is_named_with_its_line(
    tmp_path: Path, line: str, refused: str
) -> None:
    tree(tmp_path, ".env", "x")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OptionError, match=refused):
        packed(tmp_path, line)


def test_a_context_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    tree(tmp_path, "file")
    with pytest.raises(OptionError, match=r"context_dir is .*file, which is no folder"):
        packed(tmp_path, context_dir="file")
    with pytest.raises(OptionError, match=r"dockerignore_path names .*gone, which is not there"):
        packed(tmp_path, dockerignore_path="gone")


def test_a_context_that_is_too_large_names_the_largest_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_archive, "MAX_ARCHIVE", 5_000_000)
    for name, size in {"a": 1, "b": 4_000_000, "c": 3_000_000}.items():
        (tmp_path / name).write_bytes(bytes(size))
    with pytest.raises(OptionError, match=r"7 MB, above 5 MB; .* are b \(4 MB\), c \(3 MB\), a"):
        packed(tmp_path)


def test_sockets_and_pipes_are_no_files(tmp_path: Path) -> None:
    tree(tmp_path, "one")
    os.mkfifo(tmp_path / "pipe")
    assert packed(tmp_path) == ["one"]
