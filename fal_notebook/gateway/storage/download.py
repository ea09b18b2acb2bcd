"""GET and HEAD of a stored file: whole or a range, as fast as its reader takes it."""

from __future__ import annotations

import asyncio
import contextlib
import os

from starlette.types import Receive, Scope, Send

from fal_notebook.gateway.headers import Header
from fal_notebook.gateway.storage import names
from fal_notebook.gateway.storage.ranges import UnsatisfiableError, span
from fal_notebook.gateway.storage.table import StoredFile

PIECE = 256 * 1024
# A page on the gateway's own origin could do all that its owner may: a file never becomes one.
_SANDBOX = (
    b"default-src 'none'; img-src 'self'; media-src 'self'; style-src 'unsafe-inline'; sandbox"
)


async def answer(
    file: StoredFile, descriptor: int, scope: Scope, receive: Receive, send: Send
) -> None:
    """Send a file and close its descriptor."""
    try:
        await _answer(file, descriptor, scope, receive, send)
    finally:
        os.close(descriptor)


async def _answer(
    file: StoredFile, descriptor: int, scope: Scope, receive: Receive, send: Send
) -> None:
    found, asked = os.fstat(descriptor), dict(scope["headers"])
    etag = f'"{found.st_mtime_ns:x}-{found.st_size:x}"'
    headers = _headers(file, etag)
    if _is_known(asked.get(b"if-none-match", b"").decode("latin-1"), etag):
        await _send_head(send, 304, headers)
        return
    try:
        wanted = _range(asked, etag) if scope["method"] == "GET" else ""
        part = span(wanted, found.st_size)
    except UnsatisfiableError:
        length = (b"content-range", b"bytes */%d" % found.st_size)
        await _send_head(send, 416, [*headers, length, (b"content-length", b"0")])
        return
    begin, end = part or (0, found.st_size)
    headers.append((b"content-length", b"%d" % (end - begin)))
    if part is not None:
        headers.append((b"content-range", b"bytes %d-%d/%d" % (begin, end - 1, found.st_size)))
    await send({"type": "http.response.start", "status": 206 if part else 200, "headers": headers})
    end = begin if scope["method"] == "HEAD" else end
    await _send_content(descriptor, begin, end, receive, send)


def _headers(file: StoredFile, etag: str) -> list[Header]:
    return [
        (b"content-type", file.content_type.encode("latin-1")),
        (b"content-disposition", names.disposition(file.content_type, file.name)),
        (b"content-security-policy", _SANDBOX),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
        (b"cache-control", b"private"),
        (b"accept-ranges", b"bytes"),
        (b"etag", etag.encode()),
    ]


def _is_known(header: str, etag: str) -> bool:
    tags = [tag.strip().removeprefix("W/") for tag in header.split(",")]
    return header.strip() == "*" or etag in tags


def _range(asked: dict[bytes, bytes], etag: str) -> str:
    """Return the range that is wanted; none when it is of another content than this."""
    if asked.get(b"if-range", etag.encode()) != etag.encode():
        return ""
    return asked.get(b"range", b"").decode("latin-1")


async def _send_head(send: Send, status: int, headers: list[Header]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body"})


async def _send_content(
    descriptor: int, begin: int, end: int, receive: Receive, send: Send
) -> None:
    gone = asyncio.ensure_future(_until_gone(receive))
    try:
        while begin < end and not gone.done():
            size = min(PIECE, end - begin)
            data = await asyncio.to_thread(os.pread, descriptor, size, begin)
            if not data:
                raise OSError("a stored file became shorter while it was read")
            begin += len(data)
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body"})
    finally:
        gone.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await gone


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
