"""What code in a container may do and take, and is told when it takes too much; real engine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import cause_of_end, deployed

from fal_notebook.deploying import deploy

SHARING = """
def share(name: str):
    import os, pathlib
    folder = pathlib.Path(os.environ["FAL_DATA_DIR"], "shared")
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("made by " + name)
    for path in folder.iterdir():
        path.write_text(path.read_text() + ".")
    return {path.name: path.read_text() for path in folder.iterdir()}
"""
WRITING = """
import pathlib
def attempt(folder):
    try:
        pathlib.Path(folder, "probe").write_text("x")
    except OSError as error:
        return error.strerror
    return "yes"
def write(x: int):
    import getpass, os
    places = [os.getcwd(), pathlib.Path.home(), "/tmp", os.environ["FAL_DATA_DIR"], "/opt/fal", "/"]
    return [os.getuid(), getpass.getuser(), [attempt(place) for place in places]]
"""


def test_nobody_is_root_in_an_image_that_brings_no_user(containers: Path) -> None:
    with deployed(WRITING) as write:
        uid, name, places = write(1)
    assert uid == (os.getuid() or 1000)
    assert name == "fal"
    assert places == ["yes"] * 4 + ["Permission denied"] * 2


def test_containers_and_processes_write_each_others_files(containers: Path) -> None:
    with deployed(SHARING, target="local") as share:
        share("process")
    with deployed(SHARING, target="docker") as share:
        assert share("container") == {
            "process": "made by process..",
            "container": "made by container.",
        }
    with deployed(SHARING + "\n", target="local") as share:
        assert share("process")["container"] == "made by container.."


def test_nobody_else_comes_to_the_shared_storage(containers: Path) -> None:
    with deployed("def touched(x: int): return x") as touched:
        touched(1)
    folder = containers / "data"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "tester").stat().st_mode & 0o7777 == 0o2770


def test_a_container_may_be_read_only_but_for_its_own_folders(
    docker_host: str, own_gateway: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", docker_host)
    monkeypatch.setenv("FAL_NOTEBOOK_DOCKER_READ_ONLY", "true")
    with deployed(WRITING, target="docker") as write:
        assert write(1)[2] == ["yes"] * 4 + ["Read-only file system"] * 2


def test_a_child_that_takes_too_much_memory_is_named_in_the_log(
    containers: Path, eventually: Any
) -> None:
    source = (
        "def parent(x: int):\n"
        "    import subprocess, sys\n"
        "    code = f'len(bytearray({x} * 1024**2))'\n"
        "    return subprocess.run([sys.executable, '-c', code]).returncode\n"
    )
    with deployed(source, machine_type="XS", keep_alive=300) as parent:
        assert (parent(1), parent(2000)) == (0, -9)
        lines = eventually(lambda: [line["message"] for line in parent.logs()])
        assert lines == [
            "out of memory: a process of this runner was killed, which may have 512 MB; a larger "
            "machine_type has more"
        ]
        assert parent(2) == 0


SERVER = """
import http.server

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        taken = bytearray((2000 if self.path == "/much" else 1) * 1024**2)
        self.send_response(200)
        self.end_headers()

def hungry(port: int):
    http.server.ThreadingHTTPServer(("0.0.0.0", port), Handler).serve_forever()
"""


def test_a_server_that_takes_too_much_memory_has_ended_for_that(
    containers: Path, eventually: Any
) -> None:
    names = {"__name__": "__main__"}
    exec(SERVER, names)
    given: dict[str, Any] = {"machine_type": "XS", "auth": "public", "serve": True}
    hungry = deploy(names["hungry"], exposed_port=8080, wait=True, **given)
    assert httpx.get(hungry.url).status_code == 200
    answer = httpx.get(f"{hungry.url}/much")
    assert answer.status_code == 503
    assert "(out of memory: it may have 512 MB" in answer.json()["detail"]
    cause = eventually(lambda: cause_of_end(containers, "hungry"))
    assert "out of memory: it may have 512 MB" in cause
    hungry.delete()
