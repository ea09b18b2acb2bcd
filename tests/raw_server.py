"""A small server for tests of Direct Server Mode: it answers with the very bytes that it got.

``python raw_server.py PORT [HOST]``; standard library only, one thread per connection.
"""

from __future__ import annotations

import base64
import hashlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable

_GO = threading.Event()
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_CLOSED: list[str] = []
_CAME: list[str] = []


def main(port: int, host: str = "127.0.0.1") -> None:
    """Serve for ever."""
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((host, port))
    server.listen()
    print("listening", flush=True)
    while True:
        threading.Thread(target=_serve, args=server.accept()[:1], daemon=True).start()


def _serve(connection: socket.socket) -> None:
    with connection:
        head = _until(connection, b"\r\n\r\n")
        path = head.split(b" ")[1].partition(b"?")[0].split(b"/")[1].decode()
        _PATHS.get(path, _echo)(connection, head)


def _until(connection: socket.socket, mark: bytes) -> bytes:
    data = b""
    while not data.endswith(mark):
        piece = connection.recv(1)
        if not piece:
            break
        data += piece
    return data


def _length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    return 0


def _body(connection: socket.socket, head: bytes) -> bytes:
    if b"transfer-encoding: chunked" in head.lower():
        return _until(connection, b"0\r\n\r\n")
    data = b""
    while len(data) < _length(head):
        data += connection.recv(65536)
    return data


def _send(connection: socket.socket, body: bytes, *lines: bytes, status: bytes = b"200 OK") -> None:
    length = b"Content-Length: %d" % len(body)
    connection.sendall(b"\r\n".join([b"HTTP/1.1 " + status, *lines, length, b"", body]))


def _echo(connection: socket.socket, head: bytes) -> None:
    _send(connection, head + _body(connection, head), b"X-Pid: %d" % os.getpid())


def _count(connection: socket.socket, head: bytes) -> None:
    """Answer how many bytes came, chunked or not; nothing is kept."""
    total, left = 0, _length(head)
    if b"chunked" in head.lower():
        while size := int(_until(connection, b"\r\n"), 16):
            left = size + 2
            while left:
                left -= len(connection.recv(min(left, 65536)))
            total += size
    while left:
        piece = len(connection.recv(65536))
        left, total = left - piece, total + piece
    _send(connection, b"%d" % total)


def _big(connection: socket.socket, head: bytes) -> None:
    size = int(head.split(b" ")[1].partition(b"?")[2])
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
    for _ in range(size // 65536):
        connection.sendall(bytes(65536))
    connection.sendall(bytes(size % 65536))


def _answer(connection: socket.socket, head: bytes) -> None:
    lines = [
        b"Location: http://elsewhere.invalid/",
        b"Set-Cookie: a=1",
        b"X-B: 2",
        b"Set-Cookie: b=2",
    ]
    _send(connection, b"there", *lines, status=b"302 Found")


def _events(connection: socket.socket, head: bytes) -> None:
    kind = b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked"
    connection.sendall(b"HTTP/1.1 200 OK\r\n" + kind + b"\r\n\r\n9\r\ndata: 1\n\n\r\n")
    _GO.wait(20)
    connection.sendall(b"9\r\ndata: 2\n\n\r\n0\r\n\r\n")


def _go(connection: socket.socket, head: bytes) -> None:
    _GO.set()
    _send(connection, b"")


def _asked(connection: socket.socket, head: bytes) -> None:
    connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    _echo(connection, head)


def _unwanted(connection: socket.socket, head: bytes) -> None:
    _send(connection, b"no", status=b"417 Expectation Failed")
    connection.settimeout(5)
    print("after the refusal came", connection.recv(100), flush=True)


def _shut(connection: socket.socket, head: bytes) -> None:
    """Close without an answer, as servers may."""


def _early(connection: socket.socket, head: bytes) -> None:
    """Refuse, and close with the body unread."""
    _send(connection, b"too much", status=b"413 Content Too Large")


def _die(connection: socket.socket, head: bytes) -> None:
    os._exit(3)


def _wait(connection: socket.socket, head: bytes) -> None:
    """Answer never; note when the caller has gone."""
    connection.recv(1)
    _CLOSED.append("gone")


def _live(connection: socket.socket, head: bytes) -> None:
    """Note each piece of the body as it comes; answer with the last."""
    _CAME.append("head")
    data = b""
    while not data or not (data.endswith(b"0\r\n\r\n") or len(data) == _length(head)):
        piece = connection.recv(65536)
        if not piece:
            return
        data += piece
        _CAME.append(data.decode())
    _send(connection, data)


def _came(connection: socket.socket, head: bytes) -> None:
    _send(connection, ",".join(_CAME).encode())


def _gone(connection: socket.socket, head: bytes) -> None:
    _send(connection, ",".join(_CLOSED).encode())


def _slow(connection: socket.socket, head: bytes) -> None:
    threading.Event().wait(1)
    _send(connection, b"slow")


def _websocket(connection: socket.socket, head: bytes) -> None:
    """Upgrade, send the head of the request as raw bytes, then every byte back as it comes."""
    key = head.lower().partition(b"sec-websocket-key:")[0]
    key = head[len(key) + 18 :].partition(b"\r\n")[0].strip()
    accept = base64.b64encode(hashlib.sha1(key + _GUID).digest())
    connection.sendall(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Protocol: chat\r\nSec-WebSocket-Accept: " + accept + b"\r\n\r\n"
    )
    frame = b"\x82\x7e" + len(head).to_bytes(2, "big") + head
    connection.sendall(frame)
    while data := connection.recv(65536):
        connection.sendall(data)
    _CLOSED.append("websocket")


_PATHS: dict[str, Callable[[socket.socket, bytes], None]] = {
    name.strip("_"): value
    for name, value in list(globals().items())
    if name
    in (
        *("_count", "_big", "_answer", "_events", "_go", "_asked", "_unwanted", "_shut"),
        *("_die", "_wait", "_gone", "_slow", "_websocket", "_early", "_live", "_came"),
    )
}

if __name__ == "__main__":
    if os.environ.get("IGNORE_SIGTERM"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    main(int(sys.argv[1]), *sys.argv[2:])
