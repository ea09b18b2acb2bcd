"""An upload's body on its way to a file: bounded, counted, whole or not there at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from starlette.types import Receive

from fal_notebook.gateway.database import io_errors
from fal_notebook.gateway.exchange import ClientGoneError, RefusedRequestError
from fal_notebook.gateway.queue.content import Spool
from fal_notebook.gateway.storage.room import Room

# Most bytes of a request that is no upload: room for the parts of 100 GB.
_MOST_JSON = 1024 * 1024
_JSON_LIMIT = "JSON of a request is above its limit of "


class Body:
    """The body of one request.

    Parameters
    ----------
    limit : int
        Most bytes that it may have; one that declares more is refused before it is read.
    what : str
        What it is, for the refusal.

    Raises
    ------
    RefusedRequestError
        413
    """

    def __init__(
        self,
        headers: dict[bytes, bytes],
        receive: Receive,
        limit: int,
        what: str = "upload is above max_upload=",
    ) -> None:
        self._receive = receive
        self._limit = limit
        self._what = what
        self.declared = int(headers.get(b"content-length", 0))
        self.size = 0
        self.more = True
        self._refuse_above_limit(self.declared)

    async def piece(self) -> bytes:
        """Return the next piece.

        Raises
        ------
        RefusedRequestError, ClientGoneError
        """
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        self.more = message.get("more_body", False)
        piece: bytes = message.get("body", b"")
        self.size += len(piece)
        self._refuse_above_limit(self.size)
        return piece

    def _refuse_above_limit(self, size: int) -> None:
        if size > self._limit:
            raise RefusedRequestError(413, f"the {self._what}{self._limit} bytes")


async def to_file(body: Body, path: Path, room: Room) -> int:
    """Write a body to a file, on disk when this returns, and return its size.

    Raises
    ------
    RefusedRequestError, ClientGoneError, DiskFullError
        Nothing of it stays then.
    """
    spool, taken = Spool(path), 0
    room.check(body.declared)
    try:
        while body.more:
            piece = await body.piece()
            room.take(len(piece))
            taken += len(piece)
            await spool.write(piece)
        await _finish(spool, path)
    except BaseException:
        spool.discard()
        room.give_back(taken)
        raise
    return taken


async def _finish(spool: Spool, path: Path) -> None:
    small = await spool.finish()
    if small is not None:
        with io_errors(path.parent):
            path.write_bytes(small)


async def json_object(headers: dict[bytes, bytes], receive: Receive) -> dict[str, Any]:
    """Return the JSON object that a request carries.

    Raises
    ------
    RefusedRequestError, ClientGoneError
    """
    body, content = Body(headers, receive, _MOST_JSON, _JSON_LIMIT), b""
    while body.more:
        content += await body.piece()
    try:
        found = json.loads(content or b"{}")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise RefusedRequestError(400, "the body is not a JSON object")
    return found
