"""The shared storage as ``/data``: for runners and what they start, and nobody else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fal_notebook import settings
from fal_notebook.runner import mounts


def may_mount() -> bool:
    """Say whether this process could show a folder as /data."""
    look = "from fal_notebook.runner import mounts; print(mounts.show('/tmp', ['/data']))"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    return done.stdout == "[]\n"


needs_mounts = pytest.mark.skipif(not may_mount(), reason="may not mount, or /data is in use")

WRITES = """
%%fal_function wait=true
def writes(text: str) -> list[str]:
    import os, pathlib, threading
    pathlib.Path("/data/mounted.txt").write_text(text)
    seen = []
    thread = threading.Thread(target=lambda: seen.extend(os.listdir("/data")))
    thread.start()
    thread.join()
    return [name for name in seen if name == "mounted.txt"]
"""
SERVES = """
%%fal_server shows exposed_port=8000 wait=true
cd /data && exec {python} -m http.server $PORT --bind 127.0.0.1
"""


@pytest.mark.linux
@needs_mounts
def test_a_real_data_folder_is_shared_by_runners_and_servers(shell: Any) -> None:
    shell.run(WRITES.strip())
    assert shell["writes"]("hello") == ["mounted.txt"]
    stored = settings.state_folder() / "data" / "tester" / "mounted.txt"
    assert stored.read_text() == "hello"
    shell.run(SERVES.strip().format(python=sys.executable))
    assert shell["shows"].request("GET", "/mounted.txt").text == "hello"
    assert not os.listdir("/data")
    assert not os.path.ismount("/data")


def test_a_data_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    assert not mounts._is_free(str(tmp_path))
    assert mounts._is_free(str(tmp_path / "new"))
    assert not mounts._is_free(str(tmp_path / "mine" / "below"))


def test_where_nothing_may_be_mounted_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert mounts.show("", ["/data"]) == ["/data"]
    monkeypatch.setattr(sys, "platform", "darwin")
    assert mounts.show("/tmp", ["/data", "/tmp"]) == ["/data"]
