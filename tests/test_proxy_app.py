"""Proxy App Mode as fal's documents show it: an App with an image, which starts a server in it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import docker
import httpx
import pytest
from serving import containers_of

# What the documents call "your-server", as a file beside the notebook.
YOUR_SERVER = '''#!/usr/local/bin/python3
"""A model's server: POST /api/generate answers with the path of a picture."""
import argparse, base64, http.server, json, os, tempfile, time

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer({"ready": True})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        path = os.path.join(tempfile.gettempdir(), "made.png")
        with open(path, "wb") as file:
            file.write(PIXEL)
        print("your-server made", asked["prompt"], flush=True)
        self.answer({"path": path})

    def answer(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

parser = argparse.ArgumentParser()
parser.add_argument("--host")
parser.add_argument("--port", type=int)
given = parser.parse_args()
time.sleep(0.5)  # it loads its model
http.server.ThreadingHTTPServer((given.host, given.port), Handler).serve_forever()
'''
# The cells: in the documents, `fal_notebook` is `fal` and the base is "your-base-image".
IMAGE_CELL = '''
DOCKERFILE = """
FROM python:{python}-slim
RUN pip install requests
COPY --chmod=755 your-server /usr/local/bin/your-server
"""
'''
APP_CELL = """%%fal_app wait=true
import subprocess
import time
import fal_notebook as fal
import requests
from fal_notebook.container import ContainerImage
from fal_notebook.toolkit import Image
from fastapi import Request
from pydantic import BaseModel, Field

SERVER_PORT = 8000

class GenerateRequest(BaseModel):
    prompt: str = Field(description="Text prompt")

class GenerateResponse(BaseModel):
    image: Image

class MyServerProxy(fal.App, keep_alive=300, max_concurrency=1):
    machine_type = "GPU-A100"
    image = ContainerImage.from_dockerfile_str(DOCKERFILE)

    def setup(self):
        self.process = subprocess.Popen(
            ["your-server", "--host", "127.0.0.1", "--port", str(SERVER_PORT)],
        )
        self._wait_for_server()

    def _wait_for_server(self, timeout=120):
        start = time.time()
        while time.time() - start < timeout:
            try:
                if requests.get(f"http://127.0.0.1:{SERVER_PORT}/", timeout=5).ok:
                    return
            except requests.ConnectionError:
                pass
            time.sleep(1)
        raise TimeoutError("Server did not start")

    @fal.endpoint("/generate")
    def generate(self, input: GenerateRequest, request: Request) -> GenerateResponse:
        resp = requests.post(
            f"http://127.0.0.1:{SERVER_PORT}/api/generate",
            json={"prompt": input.prompt},
            timeout=300,
        )
        resp.raise_for_status()

        image = Image.from_path(resp.json()["path"], request=request)
        return GenerateResponse(image=image)
"""


def test_the_documents_proxy_app_runs_with_its_image(
    containers: Path,
    shell: Any,
    tmp_path: Path,
    engine: docker.APIClient,
    eventually: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("JPY_SESSION_NAME", str(tmp_path / "proxy.ipynb"))
    (tmp_path / "your-server").write_text(YOUR_SERVER)
    shell.run(IMAGE_CELL.replace("{python}", "{}.{}".format(*sys.version_info)))
    shell.run(APP_CELL)
    app = shell["MyServerProxy"]
    assert app.name == "my-server-proxy"
    made = app.generate(prompt="a small cat").image
    found = httpx.get(made.url)
    assert (found.status_code, found.headers["content-type"]) == (200, "image/png")
    assert found.content.startswith(b"\x89PNG")
    eventually(lambda: "your-server made a small cat" in str(app.logs()))
    (container,) = containers_of(engine, "my-server-proxy")
    app.delete()
    eventually(lambda: containers_of(engine, "my-server-proxy") == [])
    assert container["HostConfig"]["CapDrop"] == ["ALL"]
