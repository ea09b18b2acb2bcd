"""Load: a lean client with one keep-alive connection, one with many, and wrk where it is."""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from statistics import median, quantiles

Address = str | tuple[str, int]
"""A Unix socket's path, or host and port."""


@dataclass(frozen=True)
class Target:
    """What is asked of whom: an address and the whole request, headers included."""

    address: Address
    path: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    method: str = "POST"

    def request(self) -> bytes:
        """Return the bytes of the request."""
        host = "runner" if isinstance(self.address, str) else "{}:{}".format(*self.address)
        lines = [
            f"{self.method} {self.path} HTTP/1.1",
            f"host: {host}",
            "content-type: application/json",
            *(f"{name}: {value}" for name, value in self.headers),
            f"content-length: {len(self.body)}",
        ]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + self.body


@dataclass(frozen=True)
class Load:
    """Requests per second, and the latency's median and 99th percentile in ms."""

    rate: float
    p50: float
    p99: float


class Client:
    """One blocking connection that sends a request when the answer before has come."""

    def __init__(self, target: Target) -> None:
        family = socket.AF_UNIX if isinstance(target.address, str) else socket.AF_INET
        self._socket = socket.socket(family)
        self._socket.settimeout(30)
        self._socket.connect(target.address)
        if family == socket.AF_INET:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._request = target.request()

    def post(self) -> int:
        """Send the request, read the whole answer and return its status."""
        self._socket.sendall(self._request)
        data = b""
        while (size := response_size(data)) is None or len(data) < size:
            chunk = self._socket.recv(65536)
            if not chunk:
                raise ConnectionError("closed before the whole answer had come")
            data += chunk
        return int(data[9:12])

    def latencies(self, count: int) -> list[float]:
        """Return the seconds that each of `count` requests took; each must be answered 200."""
        times = []
        for _ in range(count):
            started = time.perf_counter()
            status = self.post()
            times.append(time.perf_counter() - started)
            if status != 200:
                raise RuntimeError(f"answered {status}")
        return times

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


def response_size(data: bytes) -> int | None:
    """Return how long a response with a content-length is, None while its head is incomplete."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    for line in data[:end].lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return end + 4 + int(line[15:])
    raise ValueError("the load clients read answers with a content-length only")


def first_200(target: Target, deadline_s: float = 30.0) -> None:
    """Ask every few ms, each time on a new connection, until the answer is 200."""
    deadline = time.monotonic() + deadline_s
    while True:
        try:
            client = Client(target)
            try:
                if client.post() == 200:
                    return
            finally:
                client.close()
        except OSError:
            pass
        if time.monotonic() > deadline:
            raise TimeoutError(f"no 200 from {target.address} within {deadline_s:g} s")
        time.sleep(0.003)


def load(target: Target, connections: int, seconds: float, wrk: bool) -> Load:
    """Keep `connections` busy for some seconds, with wrk or with the client here."""
    if wrk:
        return _wrk(target, connections, seconds)
    return asyncio.run(_busy(target, connections, seconds))


def _wrk(target: Target, connections: int, seconds: float) -> Load:
    assert not isinstance(target.address, str)
    host, port = target.address
    headers = {"content-type": "application/json", **dict(target.headers)}
    lua = [f'wrk.method = "POST"\nwrk.body = [==[{target.body.decode()}]==]']
    lua += [f'wrk.headers["{name}"] = "{value}"' for name, value in headers.items()]
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write("\n".join(lua) + "\n")
        script.flush()
        url = f"http://{host}:{port}{target.path}"
        command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--latency"]
        done = subprocess.run(
            [*command, "-s", script.name, url], capture_output=True, text=True, check=True
        )
    if "Non-2xx" in done.stdout:
        raise RuntimeError(done.stdout)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
    assert rate is not None, done.stdout
    return Load(float(rate[1]), _wrk_ms(done.stdout, "50%"), _wrk_ms(done.stdout, "99%"))


def _wrk_ms(text: str, percentile: str) -> float:
    found = re.search(rf"{percentile}\s+([\d.]+)(us|ms|s)", text)
    assert found is not None, text
    return float(found[1]) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[found[2]]


class _Busy(asyncio.Protocol):
    """One connection that sends the next request as soon as the answer has come."""

    def __init__(self, request: bytes, until: float, times: list[float]) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._request = request
        self._until = until
        self._times = times
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._send()

    def data_received(self, data: bytes) -> None:
        self._data += data
        size = response_size(self._data)
        if size is None or len(self._data) < size:
            return
        now = time.perf_counter()
        self._times.append(now - self._started)
        if self._data[9:12] != b"200":
            self._end(RuntimeError(f"answered {self._data[9:12]!r}"))
        elif now > self._until:
            self._end(None)
        else:
            self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc or ConnectionError("closed before the whole answer had come"))

    def _send(self) -> None:
        self._data = b""
        self._started = time.perf_counter()
        self._transport.write(self._request)

    def _end(self, error: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_exception(error) if error else self.ended.set_result(None)
        self._transport.close()


async def _busy(target: Target, connections: int, seconds: float) -> Load:
    loop = asyncio.get_running_loop()
    assert not isinstance(target.address, str)
    host, port = target.address
    times: list[float] = []
    started = time.perf_counter()
    until = started + seconds

    def protocol() -> _Busy:
        return _Busy(target.request(), until, times)

    made = [await loop.create_connection(protocol, host, port) for _ in range(connections)]
    await asyncio.gather(*(connection.ended for _, connection in made))
    rate = len(times) / (time.perf_counter() - started)
    return Load(rate, median(times) * 1e3, quantiles(times, n=100)[98] * 1e3)
