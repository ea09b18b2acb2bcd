"""What a handle gets of a `StreamingResponse`: the data of its events, or its bytes."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from starlette.responses import StreamingResponse


async def values_of(response: StreamingResponse) -> AsyncGenerator[Any, None]:
    """Yield what a response streams: of server-sent events their data, JSON or text."""
    pieces = _pieces(response)
    if response.headers.get("content-type", "").startswith("text/event-stream"):
        async for data in _events(pieces):
            yield data
    else:
        async for piece in pieces:
            yield piece
    if response.background is not None:
        await response.background()


async def _pieces(response: StreamingResponse) -> AsyncIterator[bytes]:
    async for piece in response.body_iterator:
        yield piece.encode(response.charset) if isinstance(piece, str) else bytes(piece)


async def _events(pieces: AsyncIterator[bytes]) -> AsyncIterator[Any]:
    said: list[str] = []
    async for line in _lines(pieces):
        if line.startswith("data:"):
            said.append(line[5:].removeprefix(" "))
        elif not line and said:
            yield _data("\n".join(said))
            said = []
    if said:
        yield _data("\n".join(said))


async def _lines(pieces: AsyncIterator[bytes]) -> AsyncIterator[str]:
    rest = b""
    async for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield line.rstrip(b"\r").decode(errors="replace")
    yield rest.decode(errors="replace")


def _data(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
