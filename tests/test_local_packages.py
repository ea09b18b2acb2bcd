"""Requirements that are folders and files of this machine, for images."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from serving import deployed

from fal_notebook import image
from fal_notebook.backends.local_packages import Local, layers, parse, stamp
from fal_notebook.exceptions import BuildError, DeployError

PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "own-words"
version = "1.0"
[project.optional-dependencies]
moo = ["cowsay"]
[tool.setuptools]
py-modules = ["own_words"]
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A package of the user's own."""
    folder = tmp_path / "own words"
    folder.mkdir()
    (folder / "pyproject.toml").write_text(PROJECT)
    (folder / "own_words.py").write_text("def word(): return 'first'\n")
    return folder


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("numpy>=2", None),
        ("numpy[extra]==2.0 ; python_version > '3'", None),
        ("x @ https://example.org/x.whl", None),
        ("https://example.org/x.whl", None),
        ("git+https://example.org/x", None),
        ("--extra-index-url https://example.org/simple", None),
        ("/a/b", Local(Path("/a/b"))),
        ("/a b/c[x,y]", Local(Path("/a b/c"), "[x,y]")),
        ("/a/x-1.0-py3-none-any.whl", Local(Path("/a/x-1.0-py3-none-any.whl"))),
        ("file:///a/b%20c", Local(Path("/a/b c"))),
        ("own-words @ file:///a/b", Local(Path("/a/b"))),
        ("own-words[x] @ file:///a/b ; python_version > '3'",
         Local(Path("/a/b"), "[x]", "; python_version > '3'")),
    ],
)  # fmt: skip
def test_a_line_that_names_something_here_is_known(line: str, found: Local | None) -> None:
    assert parse(line) == found


def test_a_line_of_an_image_says_all_that_was_said() -> None:
    local = Local(Path("/a"), "[x]", "; python_version > '3'")
    assert local.line("a.whl") == "/opt/fal/packages/a.whl[x] ; python_version > '3'"


def test_only_what_belongs_to_a_package_changes_its_stamp(project: Path) -> None:
    before = stamp(project, sys.executable)
    for name in (".git", "__pycache__", "build", "own_words.egg-info", ".venv"):
        (project / name).mkdir()
        (project / name / "x").write_text("x")
    assert stamp(project, sys.executable) == before
    (project / "own_words.py").write_text("def word(): return 'second'\n")
    assert stamp(project, sys.executable) != before


async def test_a_folder_is_built_once_as_long_as_it_stays_the_same(
    project: Path, tmp_path: Path
) -> None:
    said: list[str] = []

    async def made() -> image.Layer:
        given = [["six", f"{project}[moo]"]]
        (layer,) = await layers(tmp_path, given, sys.executable, said.append)
        return layer

    first = await made()
    assert first.lines == ("six", "/opt/fal/packages/own_words-1.0-py3-none-any.whl[moo]")
    del said[:]
    assert await made() == first
    assert said == []
    (project / "own_words.py").write_text("def word(): return 'second'\n")
    assert (await made()).packages != first.packages


@pytest.mark.parametrize(
    ("name", "why"),
    [("nothing", "there is nothing"), ("text.txt", "is no .whl"), ("empty", "building .* failed")],
)
async def test_what_is_no_package_is_told(tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / "text.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BuildError, match=why):
        await layers(tmp_path, [[str(tmp_path / name)]], sys.executable, print)
    assert not list((tmp_path / "packages").glob("*/*"))


def test_own_packages_are_in_the_image(containers: Path, project: Path) -> None:
    source = "def said(x: int):\n    import own_words, cowsay; return own_words.word()\n"
    with deployed(source, requirements=[f"{project}[moo]"]) as said:
        assert said(1) == "first"
    (wheel,) = (containers / "packages").glob("*/*.whl")
    with deployed(source, requirements=[[str(wheel)], ["cowsay"]]) as said:
        assert said(1) == "first"
    (project / "own_words.py").write_text("def word(): return 'second'\n")
    with deployed(source, requirements=[f"own-words[moo] @ {project.as_uri()}"]) as said:
        assert said(1) == "second"


def test_own_packages_that_cannot_be_built_are_told(containers: Path, project: Path) -> None:
    (project / "pyproject.toml").write_text(PROJECT.replace("1.0", "no version"))
    deploying = deployed("def never(x: int): return x", requirements=[str(project)])
    with pytest.raises(DeployError, match=r"building .*own words failed"):
        deploying.__enter__()
