"""A WebSocket server for tests: ``python socket_server.py PORT``; it sends back what it gets."""

from __future__ import annotations

import asyncio
import os
import sys
from http import HTTPStatus
from typing import Any

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

_CLOSED: list[str] = []


async def main(port: int) -> None:
    """Serve for ever."""
    options: dict[str, Any] = {"select_subprotocol": _chat, "process_request": _refuse}
    async with serve(_talk, "127.0.0.1", port, max_size=None, **options) as server:
        await server.serve_forever()


def _chat(connection: ServerConnection, offered: Any) -> Any:
    return "chat" if "chat" in offered else None


def _refuse(connection: ServerConnection, request: Any) -> Any:
    if request.path == "/refused":
        return connection.respond(HTTPStatus.FORBIDDEN, "not here\n")
    return None


async def _talk(socket: ServerConnection) -> None:
    assert socket.request is not None
    await socket.send(socket.request.path)
    try:
        async for message in socket:
            await _answer(socket, message)
        await socket.wait_closed()
    except ConnectionClosed:
        pass
    _CLOSED.append(f"{socket.close_code} {socket.close_reason}")


async def _answer(socket: ServerConnection, message: str | bytes) -> None:
    word, *rest = message.split(" ") if isinstance(message, str) else [""]
    if word == "close":
        await socket.close(int(rest[0]), rest[1])
    elif message == "last close":
        await socket.send(_CLOSED[-1])
    elif word == "flood":
        for _ in range(int(rest[0])):
            await socket.send(bytes(2**20))
    elif word == "die":
        os._exit(1)
    else:
        await socket.send(message)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
