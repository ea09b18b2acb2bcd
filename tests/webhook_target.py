"""What a webhook is sent to: a real server, names that resolve as told, the receiver's check."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import ssl
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpcore
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
REFUSED = b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n"


class Target:
    """A real server that keeps what it got; `answer` writes the reply."""

    def __init__(
        self,
        answer: bytes | Callable[[asyncio.StreamWriter], Awaitable[None]],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.answer = answer
        self.tls = tls
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.connections = 0
        self._open: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._open.append(writer)
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        self.requests.append((head[0], headers, body))
        with contextlib.suppress(ConnectionError):
            if isinstance(self.answer, bytes):
                writer.write(self.answer)
                await writer.drain()
            else:
                await self.answer(writer)
        writer.close()

    async def __aenter__(self) -> Target:
        self._server = await asyncio.start_server(self.serve, "127.0.0.1", 0, ssl=self.tls)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/hook?a=1"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in self._open:
            writer.close()
        for writer in self._open:
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


async def silence(writer: asyncio.StreamWriter) -> None:
    """Never answer."""
    await asyncio.Event().wait()


async def drip(writer: asyncio.StreamWriter) -> None:
    """Answer at once, then send one byte after another without an end."""
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while not writer.is_closing():
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.01)


async def nothing() -> tuple[dict[str, str], bytes]:
    """Make an empty message."""
    return {}, b""


class Names:
    """A resolver; each name has its answers, one a question, the last one for ever."""

    def __init__(self, **answers: list[list[str]]) -> None:
        self.answers = answers
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        answers = self.answers.get(host.replace(".", "_"))
        if answers is None:
            raise OSError("no such name")
        return answers.pop(0) if len(answers) > 1 else answers[0]


class Detour(httpcore.AnyIOBackend):
    """The network, but each address is a port of this machine; notes what was asked for."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.connected: list[str] = []

    async def connect_tcp(self, host: str, *_: Any, **__: Any) -> httpcore.AsyncNetworkStream:
        self.connected.append(host)
        return await super().connect_tcp("127.0.0.1", self.port)


def verify(headers: dict[str, str], body: bytes, jwks: dict[str, Any]) -> bool:
    """The receiver's part, written after https://docs.fal.ai/model-endpoints/webhooks."""
    given = {name.lower(): value for name, value in headers.items()}
    timestamp = given["x-fal-webhook-timestamp"]
    if abs(int(timestamp) - int(time.time())) > 300:
        return False
    parts = [given["x-fal-webhook-request-id"], given["x-fal-webhook-user-id"], timestamp]
    signed = "\n".join([*parts, hashlib.sha256(body).hexdigest()]).encode()
    for key in jwks["keys"]:
        raw = base64.urlsafe_b64decode(key["x"] + "=" * (-len(key["x"]) % 4))
        with contextlib.suppress(InvalidSignature):
            signature = bytes.fromhex(given["x-fal-webhook-signature"])
            Ed25519PublicKey.from_public_bytes(raw).verify(signature, signed)
            return True
    return False
