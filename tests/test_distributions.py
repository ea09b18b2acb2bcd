"""Which distributions an image needs for what code imports."""

from __future__ import annotations

import json
import sys
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest

from fal_notebook.payload.distributions import distributions_of, needed_by


def made(folder: Path, name: str, version: str, modules: list[str], **direct_url: object) -> None:
    """Install a distribution by hand."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "RECORD").write_text("".join(f"{module},,\n" for module in modules))
    for module in modules:
        (folder / module).parent.mkdir(parents=True, exist_ok=True)
        (folder / module).touch()
    if direct_url:
        (info / "direct_url.json").write_text(json.dumps(direct_url))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_a_module_of_another_name_is_pinned_to_what_is_installed() -> None:
    found = needed_by({"sklearn.linear_model", "os", "__main__", "fal_notebook.toolkit"})
    assert found.requirements == (f"scikit-learn=={version('scikit-learn')}",)
    assert found.lacking == ()


def test_the_packages_of_distributions_are_those_that_python_finds(site: Path) -> None:
    made(site, "compiled", "1", ["fast.cpython-311-x86_64-linux-gnu.so", "alone.py", "p/m.py"])
    known = {k: set(v) for k, v in packages_distributions().items() if k.isidentifier()}
    known["fast"] = {"compiled"}  # Python 3.11's own does not see it
    assert {"alone", "p", "numpy"} < set(known)
    asked = known.keys() - sys.stdlib_module_names
    assert distributions_of(asked) == {name: known[name] for name in asked}


def test_of_a_namespace_only_what_holds_the_module(site: Path) -> None:
    made(site, "big-one", "1.0", ["space/one/__init__.py"])
    made(site, "big-two", "2.0", ["space/two.py"])
    assert needed_by({"space.one.inner", "space.one"}).requirements == ("big-one==1.0",)
    assert needed_by({"space.two"}).requirements == ("big-two==2.0",)


def test_a_local_version_is_asked_for_as_an_index_has_it(site: Path) -> None:
    made(site, "lib", "2.3.0+cu121", ["lib/__init__.py"])
    assert needed_by({"lib"}).requirements == ("lib==2.3.0",)


def test_what_came_from_elsewhere_is_fetched_there_and_a_folder_is_told(site: Path) -> None:
    vcs = {"vcs": "git", "commit_id": "abc"}
    made(site, "cloned", "1", ["cloned.py"], url="https://h/r.git", vcs_info=vcs)
    made(site, "archive", "1", ["archive.py"], url="https://h/a.whl", archive_info={})
    made(site, "mine", "1", ["mine.py"], url="file:///home/me", dir_info={"editable": True})
    found = needed_by({"cloned", "archive", "mine"})
    lines = ("archive @ https://h/a.whl", "cloned @ git+https://h/r.git@abc")
    assert found.requirements == lines
    assert found.lacking == ("mine",)


def test_nothing_is_needed_for_the_standard_library() -> None:
    assert needed_by(sys.stdlib_module_names).requirements == ()
