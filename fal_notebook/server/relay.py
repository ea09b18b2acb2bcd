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
    browser: IOStream, gateway: IOStream, head: bytes, rewritten: Callable[[bytes], bytes]
) -> None:
    """Send a request's head and body to the gateway and its answer back; close both in the end.

    Whoever goes away first ends it for both: a browser that leaves cancels its request.
    """
    body = asyncio.create_task(_send(head, browser, gateway))
    try:
        with suppress(StreamClosedError, UnsatisfiableReadError):
            await _answer(gateway, browser, rewritten)
    finally:
        body.cancel()
        gateway.close()
        browser.close()


async def _send(head: bytes, browser: IOStream, gateway: IOStream) -> None:
    with suppress(StreamClosedError):
        await gateway.write(head)
        await _pump(browser, gateway)
    if browser.closed():
        gateway.close()


async def _answer(
    gateway: IOStream, browser: IOStream, rewritten: Callable[[bytes], bytes]
) -> None:
    head = b""
    while not head or is_interim(head):
        head = await gateway.read_until(b"\r\n\r\n", max_bytes=_LONGEST_HEAD)
        await browser.write(rewritten(head))
    await _pump(gateway, browser)


async def _pump(source: IOStream, target: IOStream) -> None:
    while True:
        await target.write(await source.read_bytes(_CHUNK, partial=True))
