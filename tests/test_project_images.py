"""The documents' own pyproject.toml with images, deployed as written, on a real engine."""

from __future__ import annotations

import io
import sys
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import docker
import pytest
from test_cli import run
from test_project import COMMAND, DOCKERFILE, REFERENCE

from fal_notebook import Handle
from fal_notebook.exceptions import GatewayError
from fal_notebook.server_handle import ServerHandle

BASE = "python:{}.{}-slim".format(*sys.version_info)
SERVER = """#!/usr/bin/env python3
import argparse, http.server, json, os, sys
options = argparse.ArgumentParser()
options.add_argument("--host")
options.add_argument("--port", type=int)
given = options.parse_args()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps([self.path, sys.argv[1:], os.environ.get("FROM_IMAGE")]).encode()
        self.send_response(200); self.end_headers(); self.wfile.write(body)
http.server.ThreadingHTTPServer((given.host, given.port), Handler).serve_forever()
"""
COPIED = f"FROM {BASE}\nENV FROM_IMAGE=yes\nCOPY your-server /usr/local/bin/\n"
ARGUMENTS = ["--host", "0.0.0.0", "--port", "8000"]
TEXTS = {
    "dockerfile": (
        DOCKERFILE,
        COPIED + 'CMD ["your-server", "--host", "0.0.0.0", "--port", "8000"]',
    ),
    "reference": (REFERENCE, None),
    "entrypoint and cmd": (COMMAND, COPIED + 'ENTRYPOINT ["false"]'),
}


@pytest.fixture
def folder(containers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the file, as the working folder; what it deploys is deleted."""
    (tmp_path / "your-server").write_text(SERVER)
    (tmp_path / "your-server").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FAL_NOTEBOOK_TARGET", "local")  # an image says itself where it runs
    yield tmp_path
    with suppress(GatewayError):
        ServerHandle("tester", "my-server").delete()


@pytest.fixture(scope="module")
def made_elsewhere(engine: docker.APIClient) -> Iterator[None]:
    """The image that is built and pushed already; nothing in it says how it starts."""
    with io.BytesIO() as context:
        with tarfile.open(fileobj=context, mode="w") as archive:
            for name, text in {"Dockerfile": COPIED, "your-server": SERVER}.items():
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode = len(text), 0o755
                archive.addfile(entry, io.BytesIO(text.encode()))
        context.seek(0)
        tag = "my-org/my-server:latest"
        lines = engine.build(fileobj=context, custom_context=True, tag=tag, rm=True, decode=True)
        assert not [line["error"] for line in lines if "error" in line]
    yield
    engine.remove_image("my-org/my-server:latest", force=True)


@pytest.mark.parametrize("example", TEXTS)
def test_the_documents_examples_deploy_as_written(
    folder: Path, made_elsewhere: None, example: str
) -> None:
    text, dockerfile = TEXTS[example]
    (folder / "pyproject.toml").write_text(text)
    if dockerfile:
        (folder / "Dockerfile").write_text(dockerfile)
    shown = run("deploy", "my-server")
    assert "my-server: active (revision 1)" in shown
    assert "no machine of type GPU-A100" in shown
    handle = ServerHandle("tester", "my-server")
    assert handle.request("GET", "/a?b=c").json() == ["/a?b=c", ARGUMENTS, "yes"]
    options = handle.status()["options"]
    assert (options["auth"], options["exposed_port"], options["keep_alive"]) == (
        "private",
        8000,
        300,
    )
    assert "up to date" in run("deploy", "my-server")


def test_a_changed_file_of_the_folder_is_a_new_revision(folder: Path) -> None:
    text, dockerfile = TEXTS["dockerfile"]
    (folder / "pyproject.toml").write_text(text)
    (folder / "Dockerfile").write_text(str(dockerfile))
    run("deploy", "my-server")
    (folder / "your-server").write_text(SERVER.replace("self.path,", "'changed',"))
    assert "active (revision 2)" in run("deploy", "my-server")
    handle = ServerHandle("tester", "my-server")
    assert handle.request("GET", "/").json()[0] == "changed"


def test_a_cell_of_toml_builds_beside_the_notebook(
    folder: Path, shell: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("JPY_SESSION_NAME", str(folder / "a.ipynb"))
    monkeypatch.chdir("/")
    (folder / "Dockerfile").write_text(str(TEXTS["entrypoint and cmd"][1]))
    (folder / "code.py").write_text("import os\ndef told():\n    return os.environ['FROM_IMAGE']\n")
    code = '[tool.fal.apps.told]\nref = "code.py::told"\nimage.dockerfile = "Dockerfile"\n'
    shell.run(f"%%fal_pyproject wait=true\n{COMMAND}{code}")
    assert shell["my_server"].request("GET", "/").json()[1] == ARGUMENTS
    assert shell["told"]() == "yes"  # an app of code may have an image too
    assert "my-server: active" in capsys.readouterr().out


@pytest.mark.parametrize("brings", [False, True])
def test_an_entry_point_travels_by_value_whether_the_image_brings_it_or_not(
    folder: Path, brings: bool
) -> None:
    (folder / "pi_package").mkdir()
    (folder / "pi_package" / "names.py").write_text("WORD = 'here'\n")
    (folder / "pi_package" / "app.py").write_text(
        "from pi_package.names import WORD\ndef told(n: int) -> str:\n    return f'{WORD} {n}'\n"
    )
    (folder / "Dockerfile").write_text(
        f"FROM {BASE}\n" + "COPY pi_package /own/pi_package\nENV PYTHONPATH=/own\n" * brings
    )
    (folder / "pyproject.toml").write_text(
        '[tool.fal.apps.my-server]\npython_entry_point = "pi_package.app:told"\n'
        'image.dockerfile = "Dockerfile"\n'
    )
    run("deploy", "my-server")
    assert Handle("tester", "my-server")(3) == "here 3"
