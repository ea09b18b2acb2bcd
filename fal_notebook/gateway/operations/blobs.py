"""Take in payloads and build contexts: streamed to a file, checked by SHA-256, kept while used."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

from fal_notebook.exceptions import OptionError, PayloadTooLargeError
from fal_notebook.gateway import clock, paths
from fal_notebook.gateway.database import io_errors
from fal_notebook.gateway.gateway import Gateway

# The hard limit of a payload, 256 MB, and room for its manifest.
MAX_BLOB = 260 * 1000 * 1000
# A payload that no revision uses goes after this many seconds: its deploy may still come.
UNUSED_KEPT = 24 * 3600.0


async def store(gateway: Gateway, digest: str, content: AsyncIterator[bytes]) -> int:
    """Store a payload under its SHA-256 in hex, checked by the caller, and return its size.

    Raises
    ------
    PayloadTooLargeError, OptionError
        When it is above the limit or does not match; nothing of it stays.
    DiskFullError
    """
    path = paths.blob(gateway.state, digest)
    temporary = path.with_suffix(f".{os.urandom(4).hex()}")
    try:
        with io_errors(path.parent):
            path.parent.mkdir(exist_ok=True, mode=0o700)
            size, found = await _write(temporary, content)
        if found != digest:
            raise OptionError("the payload does not match its SHA-256; deploy again")
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return size


def refuse_above_limit(size: int) -> None:
    """Refuse a payload that is, or is declared to be, too large.

    Raises
    ------
    PayloadTooLargeError
    """
    if size > MAX_BLOB:
        raise PayloadTooLargeError(f"the payload is above {MAX_BLOB // 1000**2} MB")


async def _write(path: Path, content: AsyncIterator[bytes]) -> tuple[int, str]:
    size, digest = 0, hashlib.sha256()
    with path.open("wb") as file:
        async for chunk in content:
            size += len(chunk)
            refuse_above_limit(size)
            digest.update(chunk)
            file.write(chunk)
    return size, digest.hexdigest()


def discard(gateway: Gateway, digest: str) -> None:
    """Remove a payload at once, unless a revision uses it."""
    if digest not in gateway.store.blobs():
        paths.blob(gateway.state, digest).unlink(missing_ok=True)


def prune(gateway: Gateway) -> None:
    """Remove payloads, and leftovers of uploads, that nothing uses."""
    used = gateway.store.blobs()
    for path in (gateway.state / "blobs").glob("*"):
        with contextlib.suppress(OSError):
            if path.name not in used and path.stat().st_mtime < clock.ago(UNUSED_KEPT):
                path.unlink()
