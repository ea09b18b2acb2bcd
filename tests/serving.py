"""Apps for the tests of the gateway: deployed from source text, called over HTTP or raw sockets."""

from __future__ import annotations

import contextlib
import hashlib
import json
import linecache
import os
import signal
import socket
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import docker
import httpx
import pytest
from docker.errors import NotFound

from fal_notebook import deploying, discovery, settings
from fal_notebook.backends.containers import STATE
from fal_notebook.discovery import GatewayInfo
from fal_notebook.exceptions import GatewayError, NotFoundError
from fal_notebook.handle import Handle

# An app that does what a request asks for.
ACT = """
import os, time
from typing import Any
from fastapi import HTTPException, Response

def act(do: str = "echo", n: float = 0, text: str = "") -> Any:
    if do == "exit":
        os._exit(3)
    if do == "sleep":
        time.sleep(n)
    if do == "pid":
        return os.getpid()
    if do == "size":
        return len(text)
    if do == "big":
        return Response(b"x" * int(n), media_type="application/octet-stream")
    if do == "status":
        raise HTTPException(int(n), "as asked")
    return n
"""


@contextlib.contextmanager
def deployed(source: str, **options: Any) -> Iterator[Handle]:
    """Deploy the last function of `source` as a notebook would; delete it at the end."""
    handle = deploying.deploy(defined(source), wait=True, **options)
    try:
        yield handle
    finally:
        with contextlib.suppress(NotFoundError):
            handle.delete()


def defined(source: str) -> Any:
    """Return the last function of a source as a notebook defines it."""
    filename = f"<cell {abs(hash(source))}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source, filename, "exec"), namespace)
    return namespace[source.rsplit("def ", 1)[1].split("(")[0]]


@contextlib.contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    """Press Ctrl-C while the body waits."""
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    yield
    timer.join()


@contextlib.contextmanager
def deleted_after(*names: str) -> Iterator[None]:
    """Delete these apps of the tester's when the body has ended."""
    yield
    for name in names:
        with contextlib.suppress(GatewayError):
            Handle("tester", name).delete()


def eventually(condition: Callable[[], Any], timeout: float = 20.0) -> Any:
    """Poll a condition, by default at most 20 s, and return its first true value."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)
    return value


def kill_gateway(state: Path) -> None:
    """Kill the gateway of a state folder with -9."""
    info = discovery.published(state)
    assert info is not None
    os.kill(info.pid, signal.SIGKILL)


def control(gateway: GatewayInfo) -> httpx.Client:
    """Return a client with the owner's token."""
    headers = {"authorization": f"Bearer {gateway.token}"}
    return httpx.Client(base_url=gateway.url, headers=headers, timeout=20, trust_env=False)


def with_key(key: str) -> dict[str, str]:
    """Return the header that a caller with a key sends."""
    return {"authorization": f"Key {key}"}


def in_flight(gateway: GatewayInfo, name: str = "act") -> int:
    """Return how many requests an app has."""
    with control(gateway) as client:
        return int(client.get(f"/api/apps/tester/{name}").json()["in_flight"])


def run_url(gateway: GatewayInfo, handle: Handle) -> str:
    """Return the URL of an app."""
    return f"{gateway.url}/run/{handle.owner}/{handle.name}"


class Wire:
    """A raw connection to the gateway, for what no HTTP library sends."""

    def __init__(self, gateway: GatewayInfo) -> None:
        address = urlsplit(gateway.url)
        assert address.hostname
        self.host = address.netloc
        self.socket = socket.create_connection((address.hostname, address.port or 80), timeout=20)
        self._buffer = b""

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, text: str | bytes) -> Wire:
        """Send bytes as they are; in text, a newline is CRLF and GATEWAY the gateway's own name."""
        if isinstance(text, str):
            text = text.replace("\n", "\r\n").replace("GATEWAY", self.host).encode()
        self.socket.sendall(text)
        return self

    def until(self, mark: bytes) -> bytes:
        """Return what comes up to and with `mark`."""
        while mark not in self._buffer:
            data = self.socket.recv(65536)
            assert data, f"closed before {mark!r}: {self._buffer!r}"
            self._buffer += data
        found, mark, self._buffer = self._buffer.partition(mark)
        return found + mark

    def rest(self) -> bytes:
        """Return everything up to the close."""
        while data := self.socket.recv(65536):
            self._buffer += data
        return self._buffer

    def head(self) -> tuple[int, dict[str, str]]:
        """Return status and headers of the next response."""
        first, *lines = self.until(b"\r\n\r\n").decode("latin-1").strip().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        return int(first.split(" ")[1]), headers

    def response(self) -> tuple[int, dict[str, str], bytes]:
        """Return the next response, whose length is declared."""
        status, headers = self.head()
        length = int(headers["content-length"])
        while len(self._buffer) < length:
            self._buffer += self.socket.recv(65536)
        body, self._buffer = self._buffer[:length], self._buffer[length:]
        return status, headers, body


def post(path: str, value: Any, *headers: str) -> str:
    """Return a JSON request as text for `Wire.send`."""
    body = json.dumps(value)
    lines = [f"POST {path} HTTP/1.1", "Host: GATEWAY", f"Content-Length: {len(body)}", *headers]
    return "\n".join(lines) + "\n\n" + body


def fill(folder: Path, leave: int) -> None:
    """Write a file that leaves so many bytes free."""
    free = os.statvfs(folder)
    size = free.f_bavail * free.f_bsize - leave
    with (folder / "filler").open("ab") as file:
        file.write(bytes(size))


@contextlib.contextmanager
def small_file_system(folder: Path, size: str) -> Iterator[None]:
    """Mount a file system of `size`, such as ``8m``, on an empty folder."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def own_label() -> str:
    """Return the value of the label `STATE` of all that the present state's gateway has made."""
    return hashlib.sha256(str(settings.state_folder()).encode()).hexdigest()[:16]


def containers_of(engine: docker.APIClient, app: str) -> list[dict[str, Any]]:
    """Return what the engine says of the containers of an app."""
    labels = [f"fal-notebook.app={app}", "fal-notebook.owner=tester", f"{STATE}={own_label()}"]
    found = engine.containers(all=True, filters={"label": labels})
    return list(_inspected(engine, [item["Id"] for item in found]))


def _inspected(engine: docker.APIClient, names: list[str]) -> Iterator[dict[str, Any]]:
    for name in names:
        with contextlib.suppress(NotFound):  # it has just been removed
            yield engine.inspect_container(name)


def start_gateway_again(state: Path, eventually: Any) -> None:
    """Kill the gateway with -9 and start the next one."""
    info = discovery.published(state)
    assert info is not None
    kill_gateway(state)
    eventually(lambda: discovery.find(state) is None)
    assert discovery.ensure(state).pid != info.pid


def steps(state: Path, app: str) -> str:
    """Return what a gateway said about the deploys of an app."""
    return "\n".join(data["message"] for data in events(state, app, "deploy"))


def events(state: Path, app: str, kind: str) -> list[dict[str, Any]]:
    """Return what a gateway told of an app, oldest first."""
    with contextlib.closing(sqlite3.connect(state / "store.db")) as store:
        query = "SELECT data FROM events WHERE app = ? AND kind = ? ORDER BY seq"
        return [json.loads(row[0]) for row in store.execute(query, (app, kind))]


def cause_of_end(state: Path, app: str) -> str:
    """Return why the last runner of an app that has ended did so."""
    with contextlib.closing(sqlite3.connect(state / "store.db")) as store:
        query = "SELECT cause FROM runners WHERE app = ? AND ended_at ORDER BY ended_at DESC"
        row = store.execute(query, (app,)).fetchone()
        return str(row[0]) if row else ""
