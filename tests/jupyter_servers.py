"""Real Jupyter servers with everything of their own, as tests and browsers use them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
from serving import eventually

TOKEN = "a-token-of-jupyter"
# Names of variables that a Jupyter server of a test must not share with the user's own.
_FOLDERS = {
    "JUPYTER_CONFIG_DIR": "config",
    "JUPYTER_DATA_DIR": "data",
    "JUPYTER_RUNTIME_DIR": "runtime",
    "JUPYTERLAB_SETTINGS_DIR": "settings",
    "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
    "IPYTHONDIR": "ipython",
}
# Without this JupyterLab asks the reader about news, which is a request to outside too.
_QUIET = "@jupyterlab/apputils-extension/notification.jupyterlab-settings"


@dataclass(frozen=True)
class Jupyter:
    """A server: its URL with the base URL and without a slash at the end, folder and log."""

    url: str
    root: Path
    log: Path

    def client(self, token: str | None = TOKEN) -> httpx.Client:
        """Return a client, logged in by its token; None is nobody."""
        headers = {"Authorization": f"token {token}"} if token else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=30)


@contextlib.contextmanager
def jupyter(
    folder: Path, app: str = "server", base_url: str = "/", python: str = sys.executable
) -> Iterator[Jupyter]:
    """Run Jupyter of an environment; `app` is ``server``, ``lab`` or ``notebook``."""
    root, log, port = folder / "notebooks", folder / "log", free_port()
    root.mkdir(parents=True)
    (folder / "settings" / _QUIET).parent.mkdir(parents=True)
    (folder / "settings" / _QUIET).write_text('{"fetchNews": "false", "checkForUpdates": false}')
    command = [python, "-m", "jupyter", app, "--no-browser", "--allow-root"]
    settings = {
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.port": port,
        "ServerApp.port_retries": 0,
        "ServerApp.base_url": base_url,
        "ServerApp.root_dir": root,
        "IdentityProvider.token": TOKEN,
        "LabApp.expose_app_in_browser": True,
        "JupyterNotebookApp.expose_app_in_browser": True,
    }
    command += [f"--{name}={value}" for name, value in settings.items()]
    own = {name: str(folder / value) for name, value in _FOLDERS.items()}
    environment = {**os.environ, **own, "JUPYTER_PREFER_ENV_PATH": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    found = Jupyter(f"http://127.0.0.1:{port}{base_url.rstrip('/')}", root, log)
    try:
        eventually(lambda: _answers(found, process), 60)
        yield found
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def notebook(path: Path, *cells: str) -> None:
    """Write a notebook of these code cells."""
    content = {
        "cells": [
            {
                "cell_type": "code",
                "execution_count": None,
                "id": f"cell-{number}",
                "metadata": {},
                "outputs": [],
                "source": source,
            }
            for number, source in enumerate(cells)
        ],
        "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    path.write_text(json.dumps(content))


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _answers(server: Jupyter, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, server.log.read_text()
    with contextlib.suppress(httpx.TransportError), server.client() as client:
        return client.get("/api/status").status_code == 200
    return False
