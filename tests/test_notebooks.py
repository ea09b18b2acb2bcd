"""The notebooks run as they stand, the quickstart by `make demo`, and leave nothing behind."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import docker
import httpx
import nbformat
import numpy
import psutil
import pytest
from nbclient import NotebookClient
from serving import eventually, own_label

from fal_notebook import sync
from fal_notebook.backends.containers import STATE
from fal_notebook.discovery import GatewayInfo
from fal_notebook.handle import shared_client
from fal_notebook.runner.user_server import free_port

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


def printed(notebook: nbformat.NotebookNode, cell_id: str) -> str:
    """What a cell of an executed notebook wrote to stdout."""
    outputs = next(cell.outputs for cell in notebook.cells if cell.id == cell_id)
    return "".join(output.text for output in outputs if output.get("name") == "stdout")


def bring_your_server(port: int) -> nbformat.NotebookNode:
    """The notebook, whose app's own server listens on a port that is free here."""
    notebook = nbformat.read(NOTEBOOKS / "02-bring-your-server.ipynb", as_version=4)
    for cell in notebook.cells:
        cell.source = cell.source.replace("SERVER_PORT = 8000", f"SERVER_PORT = {port}")
    return notebook


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def test_a_port_that_is_taken_is_named_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        cell = next(cell for cell in bring_your_server(port).cells if cell.id == "port")
        with pytest.raises(AssertionError, match=f"port {port} is taken: end what listens there"):
            exec(cell.source, {})


def test_a_server_is_brought_directly_and_behind_an_app(gateway: GatewayInfo) -> None:
    notebook = bring_your_server(8000 if is_free(8000) else free_port())
    NotebookClient(notebook, timeout=180, shutdown_kernel="immediate").execute()
    assert re.fullmatch(
        r"http://127\.0\.0\.1:\d+/run/tester/my-server\n"
        r"200 \{'path': '/\S+\.png'\}\n\['/api/generate'\]\n",
        printed(notebook, "direct-call"),
    )
    content_type, url = printed(notebook, "proxy-call").split()
    content = httpx.get(url).raise_for_status().content
    assert (content_type, content[:8]) == ("image/png", b"\x89PNG\r\n\x1a\n")
    shown = next(cell.outputs for cell in notebook.cells if cell.id == "picture")
    assert "image/png" in shown[0].data
    left = {app["name"] for app in sync.wait(shared_client().apps())}
    assert left.isdisjoint({"my-server", "my-server-proxy"})


def shown(notebook: nbformat.NotebookNode, cell_id: str) -> str:
    """What a cell of an executed notebook displayed, its values too, as text."""
    outputs = next(cell.outputs for cell in notebook.cells if cell.id == cell_id)
    return "\n".join(output.data["text/plain"] for output in outputs if "data" in output)


def runner_images(folder: Path) -> nbformat.NotebookNode:
    """The notebook, executed in `folder`; the engine here has Python of this minor alone."""
    notebook = nbformat.read(NOTEBOOKS / "03-runner-images.ipynb", as_version=4)
    for cell in notebook.cells:
        cell.source = cell.source.replace("python:3.11", "python:{}.{}".format(*sys.version_info))
    where = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=600, shutdown_kernel="immediate", resources=where).execute()
    return notebook


def image_names(text: str, kind: str) -> list[str]:
    return re.findall(rf"fal-notebook/{kind}:[0-9a-f]+", text)


def test_images_are_made_from_cells_dockerfiles_and_tables(
    docker_host: str,
    own_gateway: Path,
    engine: docker.APIClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DOCKER_HOST", docker_host)
    folder = tmp_path / "notebook"
    folder.mkdir()
    notebook = runner_images(folder)

    assert f"image with numpy=={numpy.__version__}" in shown(notebook, "function")
    answer = {"visitors": 159, "numpy": numpy.__version__, "container": True}
    assert printed(notebook, "image") == f"{answer}\n"
    assert printed(notebook, "changed-image") == "{'day': 7, 'visitors': 159}\n"
    assert "forecast: up to date (revision 2)" in shown(notebook, "unchanged")
    first, second = shown(notebook, "image"), shown(notebook, "changed-image")
    assert image_names(first, "env") == image_names(second, "env") != []
    (earlier,), (later,) = image_names(first, "app"), image_names(second, "app")
    layers = [engine.inspect_image(name)["RootFS"]["Layers"] for name in (earlier, later)]
    assert layers[0][:-1] == layers[1][:-1]
    assert layers[0][-1] != layers[1][-1]

    assert shown(notebook, "app-call") == "'Bonan matenon, Ada!'"
    greetings = {"en": "Good morning", "de": "Guten Morgen", "eo": "Bonan matenon"}
    assert re.fullmatch(
        rf"http://127\.0\.0\.1:\d+/run/tester/web\n200 {greetings}\n",
        printed(notebook, "dockerfile-call"),
    )
    assert "my-server: active (revision 1)" in shown(notebook, "pyproject")
    assert printed(notebook, "pyproject-call") == "200 ready\n"
    would_go = image_names(shown(notebook, "prune"), r"\w+")
    assert earlier in would_go
    assert {later, *image_names(first, "env")}.isdisjoint(would_go)

    assert sync.wait(shared_client().apps()) == []
    ours = {"label": f"{STATE}={own_label()}"}
    eventually(lambda: not engine.containers(all=True, filters=ours))
    assert list(folder.iterdir()) == []
    assert later in sync.wait(shared_client().prune_images())["images"]
    assert not [image for image in engine.images() if own_label() in str(image["RepoTags"])]
