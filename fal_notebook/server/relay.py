"""Bytes pass between two connections, both ways at once, as fast as the slower one takes them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from tornado.iostream import IOStream, StreamClosedError, UnsatisfiableReadError

from fal_notebook.server.heads import is_interim

_CHUNK = 64 * 1024
_LONGEST_HEAD = 256 * 1024


async def relay(
    browser: IOStream,
    gateway: IOStream,
    head: bytes,
    rewritten: Callable[[bytes], bytes],
    patience: float | None = None,
) -> bool:
    """Send a request's head and body to the gateway and its answer back.

    Whoever goes away first ends it: a browser that leaves cancels its request. Returns False, and
    leaves the browser's connection open, when the gateway went away without an answer.

    Raises
    ------
    TimeoutError
        When the answer has not begun after `patience` seconds; the browser's connection stays open.
    """
    body = asyncio.create_task(_send(head, browser, gateway))
    try:
        first = await asyncio.wait_for(_head(gateway), patience)
        if not first and not browser.closed():
            return False
        with suppress(StreamClosedError):
            await _answer(first, gateway, browser, rewritten)
    finally:
        body.cancel()
        gateway.close()
    browser.close()
    return True


async def _send(head: bytes, browser: IOStream, gateway: IOStream) -> None:
    with suppress(StreamClosedError):
        await gateway.write(head)
        await _pump(browser, gateway)
    if browser.closed():
        gateway.close()


async def _head(gateway: IOStream) -> bytes:
    """Return the next head of the gateway's answer, nothing when it has gone."""
    with suppress(StreamClosedError, UnsatisfiableReadError):
        return await gateway.read_until(b"\r\n\r\n", max_bytes=_LONGEST_HEAD)
    return b""


async def _answer(
    head: bytes, gateway: IOStream, browser: IOStream, rewritten: Callable[[bytes], bytes]
) -> None:
    while head and is_interim(head):
        await browser.write(rewritten(head))
        head = await _head(gateway)
    if head:
        await browser.write(rewritten(head))
        await _pump(gateway, browser)


async def _pump(source: IOStream, target: IOStream) -> None:
    while True:
        await target.write(await source.read_bytes(_CHUNK, partial=True))
