"""What a `StreamingResponse` of the user's streams: to a caller, and as values to a handle."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable
from typing import Any

from starlette.concurrency import iterate_in_threadpool
from starlette.responses import Response, StreamingResponse

from fal_notebook.runner.caller import CutError, Stream
from fal_notebook.runner.workers import Workers, is_stream


async def values_of(response: StreamingResponse, workers: Workers) -> AsyncGenerator[Any, None]:
    """Yield what a response streams: of server-sent events their data, JSON or text."""
    events = response.headers.get("content-type", "").startswith("text/event-stream")
    async with contextlib.aclosing(_pieces(response, workers)) as pieces:
        async for value in _events(pieces) if events else pieces:
            yield value
    if response.background is not None:
        await response.background()


def closed_in_time(
    response: Response, workers: Workers, failed: Callable[[Exception], object]
) -> Response:
    """Have the generator of a plain `StreamingResponse` end with its caller, all else as it is.

    `failed` is told what it raises, which cuts the answer.
    """
    if type(response) is not StreamingResponse:
        return response
    return Stream.of(response, _told(_pieces(response, workers), failed))


async def _told(
    pieces: AsyncGenerator[bytes, None], failed: Callable[[Exception], object]
) -> AsyncGenerator[bytes, None]:
    async with contextlib.aclosing(pieces):
        try:
            async for piece in pieces:
                yield piece
        except Exception as error:
            failed(error)
            raise CutError from None


def _generator_of(response: StreamingResponse) -> Any:
    """Return what was given: Starlette hides a generator that is not async in one of its own."""
    given = response.body_iterator
    if getattr(given, "ag_code", None) is iterate_in_threadpool.__code__:
        return given.ag_frame.f_locals["iterator"]  # type: ignore[attr-defined]
    return given


async def _pieces(response: StreamingResponse, workers: Workers) -> AsyncGenerator[bytes, None]:
    pieces = given = _generator_of(response)
    if is_stream(given):
        pieces = workers.values_of(given, in_slot=True)
    elif not isinstance(given, AsyncIterable):
        pieces = response.body_iterator
    try:
        async for piece in pieces:
            yield piece.encode(response.charset) if isinstance(piece, str) else bytes(piece)
    finally:
        if pieces is not given:
            await pieces.aclose()


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
