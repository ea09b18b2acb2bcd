"""A payload that this environment's packages cannot load says which versions it was made with."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
from runner_bench import payload

from fal_notebook.exceptions import PayloadFormatError
from fal_notebook.runner.loading import load


def install(folder: Path, source: str) -> None:
    (folder / "sometoys.py").write_text(source)
    sys.modules.pop("sometoys", None)
    importlib.invalidate_caches()


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A payload made with sometoys 2.0."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(str(tmp_path))
    install(tmp_path, "__version__ = '2.0'\nclass New: pass\nclass Old: pass\n")
    path = tmp_path / "payload"
    path.write_bytes(payload("import sometoys\ntoy = sometoys.New()\ndef f(): return toy"))
    yield path
    sys.modules.pop("sometoys", None)


def test_another_version_is_named_when_loading_fails(made: Path, tmp_path: Path) -> None:
    install(tmp_path, "__version__ = '1.5'\n")
    words = r"\(AttributeError: .*New.*\); it was made with sometoys 2\.0, here is 1\.5"
    with pytest.raises(PayloadFormatError, match=words):
        load(str(made), 1)


def test_the_same_version_keeps_the_error(made: Path, tmp_path: Path) -> None:
    install(tmp_path, "__version__ = '2.0'\n")
    with pytest.raises(
        PayloadFormatError, match=r"`toy` was pickled, .*attribute 'New'.* version of its module"
    ) as told:
        load(str(made), 1)
    assert type(told.value.__cause__) is AttributeError
