"""The notebooks run as they stand, by the command that people run, and leave nothing behind."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nbformat
import psutil
import pytest

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


@pytest.fixture
def private() -> Iterator[Path]:
    """Everything a demo writes lies in here; short, for socket paths are."""
    with tempfile.TemporaryDirectory(prefix="t") as folder:
        yield Path(folder)


def start_demo(private: Path, notebooks: Path = NOTEBOOKS) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(notebooks / "demo.py")],
        env={**os.environ, "TMPDIR": str(private)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def assert_nothing_is_left(private: Path) -> None:
    running = []
    for process in psutil.process_iter():
        try:
            if str(private) in process.environ().get("TMPDIR", ""):
                running.append(process)
        except psutil.Error:
            continue
    assert running == []
    assert list(private.glob("fal-demo-*")) == []


def test_quickstart_classifies_and_scales_out_and_back_to_zero(private: Path) -> None:
    demo = start_demo(private)
    output, _ = demo.communicate()
    assert demo.returncode == 0, output
    assert re.search(r"URL +http://127\.0\.0\.1:\d+/run/\S+/digits$", output, re.M), output
    accuracy = re.search(r"Accuracy +(\d\.\d+) over \d+ requests", output)
    assert accuracy is not None, output
    assert float(accuracy[1]) >= 0.95
    runners = [int(n) for n in re.findall(r"^ +\d+\.\d s  (\d+)", output, re.M)]
    assert max(runners) >= 2
    assert runners[-1] == 0
    assert_nothing_is_left(private)


def test_demo_fails_when_a_cell_fails(private: Path) -> None:
    shutil.copy(NOTEBOOKS / "demo.py", private)
    cell = nbformat.v4.new_code_cell("raise RuntimeError('no luck')")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), private / "01-quickstart.ipynb")
    demo = start_demo(private, notebooks=private)
    output, _ = demo.communicate()
    assert demo.returncode == 1
    assert "RuntimeError: no luck" in output
    assert_nothing_is_left(private)


def test_demo_cleans_up_when_interrupted(private: Path) -> None:
    with start_demo(private) as demo:
        assert demo.stdout is not None
        seen = ""
        while "[4/" not in seen:
            character = demo.stdout.read(1)
            assert character, seen
            seen += character
        demo.send_signal(signal.SIGINT)
        output = demo.stdout.read()
    assert demo.returncode == 1
    assert "Interrupted." in output
    assert_nothing_is_left(private)
