"""The rows of what passes the gateway in a stream: events, large files, idle WebSockets."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import httpx
import psutil
from loads import Target
from peers import bare, nginx_files
from report import Result
from rows import BARE, Effort
from session import Session

MB = 1_000_000
# How large the file is, and how many WebSockets there are (not with --quick).
FILE = 1000 * MB
SOCKETS = 1000


def events(session: Session, effort: Effort) -> list[Result]:
    """The first server-sent event: through the gateway, and from the runner directly."""
    name = session.new_name()
    session.run(
        f"%%fal_function {name} serve=true auth=public wait=true min_concurrency=1\n"
        f"async def {name}(text: str, times: int = 1):\n"
        "    import asyncio\n"
        "    for _ in range(times):\n        yield text\n        await asyncio.sleep(0.005)\n"
    )
    sides = [Reader(session.target(name)), Reader(session.runner(name)[0])]
    ours, runner = [], []
    for number in range(effort.rounds + 1):
        found = [side.first_events(max(10, effort.requests // 10)) for side in sides]
        if number or effort.rounds == 1:  # the first round is the warm-up
            ours.append(found[0])
            runner.append(found[1])
    for side in sides:
        side.close()
    session[name].delete()
    more = [a - b for a, b in zip(ours, runner, strict=True)]
    return [
        Result("SSE, first byte later than the runner's", "ms", more, budget=5, difference=True),
        Result("SSE, first byte through gateway", "ms", ours, "runner alone", runner),
    ]


def files(session: Session, effort: Effort) -> list[Result]:
    """Upload and download a large file; how the gateway's memory grows meanwhile."""
    size = FILE if effort.rounds > 1 else 20 * MB
    label = f"{size // MB:,} MB"
    taken: dict[str, list[float]] = {
        name: [] for name in ("up", "up MB", "down", "down MB", "written", "nginx")
    }
    with ExitStack() as stack:
        http = stack.enter_context(_client(session))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fal-bench-file-")))
        _write(folder / "peer", size)
        served = stack.enter_context(nginx_files(folder)) if effort.nginx else ""
        http.post("/storage/files", content=_pieces(10 * MB)).raise_for_status()  # the warm-up
        for _ in range(max(1, effort.rounds - 2)):
            _one_file(session, http, size, taken)
            taken["written"].append(_seconds(lambda: _write(folder / "written", size)))
            if served:
                taken["nginx"].append(_seconds(lambda: _read(http, f"{served}/peer")))
    return [
        Result(f"upload of {label}", "s", taken["up"], "file written, fsync", taken["written"]),
        Result(f"download of {label}", "s", taken["down"], "nginx", taken["nginx"]),
        Result(f"memory more for upload of {label}", "MB", taken["up MB"], budget=32),
        Result(f"memory more for download of {label}", "MB", taken["down MB"], budget=32),
    ]


def sockets(session: Session, effort: Effort) -> list[Result]:
    """Memory of the gateway for idle WebSockets, against that of a server which answers them."""
    count = SOCKETS if effort.rounds > 1 else 50
    name, program = session.new_name(), Path(__file__).with_name("bare_app.py")
    session.run(
        f"%%fal_server {name} exposed_port=8000 serve=true auth=public wait=true "
        f"max_multiplexing={2 * count}\n{sys.executable} {program} {{port}}\n"
    )
    with bare() as (target, process):  # once only: of what was freed, Python keeps most
        ours = _idle(session.target(name), "/socket", session.gateway, count)
        peer = _idle(target, "socket", process, count)
    session[name].delete()
    return [Result(f"memory more for {count:,} idle WebSockets", "MB", [ours], BARE, [peer], 60)]


ROWS: dict[str, Callable[[Session, Effort], list[Result]]] = {
    "events": events,
    "files": files,
    "sockets": sockets,
}


# --- parts of rows ---------------------------------------------------------------------------
class Reader:
    """One blocking connection that asks for events."""

    def __init__(self, target: Target) -> None:
        self._socket = _connected(target)
        self._request = target.request()

    def first_events(self, count: int) -> float:
        """Return the median of the ms until the first event came."""
        return median(self._first_event() for _ in range(count)) * 1e3

    def _first_event(self) -> float:
        started, data = time.perf_counter(), b""
        self._socket.sendall(self._request)
        while b"data:" not in data:
            data += self._received()
        taken = time.perf_counter() - started
        while not data.endswith(b"0\r\n\r\n"):
            data += self._received()
        return taken

    def _received(self) -> bytes:
        data = self._socket.recv(65536)
        if not data:
            raise ConnectionError("closed before all events had come")
        return data

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


class Peak:
    """The most memory that a process had while this was entered, above that at its begin (MB)."""

    def __init__(self, process: psutil.Process) -> None:
        self.more = 0.0
        self._process = process
        self._before = process.memory_info().rss
        self._ended = threading.Event()
        self._watching = threading.Thread(target=self._watch)

    def __enter__(self) -> Peak:
        self._watching.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._watching.join()
        self._look()

    def _watch(self) -> None:
        while not self._ended.wait(0.02):
            self._look()

    def _look(self) -> None:
        self.more = max(self.more, (self._process.memory_info().rss - self._before) / 1e6)


def _one_file(
    session: Session, http: httpx.Client, size: int, taken: dict[str, list[float]]
) -> None:
    urls: list[str] = []
    with Peak(session.gateway) as peak:
        taken["up"].append(_seconds(lambda: urls.append(_upload(http, size))))
    taken["up MB"].append(peak.more)
    with Peak(session.gateway) as peak:
        taken["down"].append(_seconds(lambda: _read(http, urls[0])))
    taken["down MB"].append(peak.more)
    http.delete(urls[0]).raise_for_status()


def _client(session: Session) -> httpx.Client:
    from fal_notebook import discovery

    found = discovery.ensure(Path(session.state))
    headers = {"authorization": f"Bearer {found.token}"}
    return httpx.Client(base_url=found.url, headers=headers, timeout=120, trust_env=False)


def _pieces(size: int) -> Iterator[bytes]:
    piece = os.urandom(MB)
    return (piece for _ in range(size // MB))


def _upload(http: httpx.Client, size: int) -> str:
    headers = {"content-length": str(size)}
    answer = http.post("/storage/files", content=_pieces(size), headers=headers)
    return str(answer.raise_for_status().json()["url"])


def _read(http: httpx.Client, url: str) -> None:
    with http.stream("GET", url) as answer:
        answer.raise_for_status()
        for _ in answer.iter_raw():
            pass


def _write(path: Path, size: int) -> None:
    with path.open("wb") as file:
        for piece in _pieces(size):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def _seconds(act: Callable[[], object]) -> float:
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def _connected(target: Target) -> socket.socket:
    unix = isinstance(target.address, str)
    connection = socket.socket(socket.AF_UNIX if unix else socket.AF_INET)
    connection.settimeout(30)
    connection.connect(target.address)
    if not unix:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _idle(target: Target, below: str, process: psutil.Process, count: int) -> float:
    """Return the MB that a process has more while so many WebSockets are open."""
    path = target.path + below
    with contextlib.ExitStack() as stack, Peak(process) as peak:
        for _ in range(count):
            connection = _connected(target)
            stack.callback(connection.close)
            _upgrade(connection, Target(target.address, path, b"", method="GET"))
    return peak.more


def _upgrade(connection: socket.socket, target: Target) -> None:
    lines = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13")
    key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
    host = "{}:{}".format(*target.address)
    head = [f"GET {target.path} HTTP/1.1", f"Host: {host}", *lines, key]
    connection.sendall("\r\n".join(head).encode() + b"\r\n\r\n")
    answer = connection.recv(4096)
    if not answer.startswith(b"HTTP/1.1 101 "):
        raise ConnectionError(f"not upgraded: {answer[:80]!r}")
