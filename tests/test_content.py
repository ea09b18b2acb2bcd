"""Bodies: small ones in the journal, big ones in files that are whole or not there."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fal_notebook.exceptions import DiskFullError, StoreError
from fal_notebook.gateway.queue import content
from fal_notebook.gateway.queue.content import INLINE, PIECE, Spool, pieces, size


async def spooled(path: Path, *parts: bytes) -> bytes | None:
    spool = Spool(path)
    for part in parts:
        await spool.write(part)
    return await spool.finish()


async def read(body: bytes | None, path: Path) -> bytes:
    return b"".join([piece async for piece in pieces(body, path)])


@pytest.mark.parametrize("length", [0, 1, INLINE - 1, INLINE])
async def test_a_small_body_makes_no_file(tmp_path: Path, length: int) -> None:
    path = tmp_path / "queue" / "x.body"
    body = await spooled(path, bytes(length))
    assert body == bytes(length) == await read(body, path)
    assert size(body, path) == length
    assert not path.parent.exists()


@given(st.lists(st.integers(0, INLINE * 2), max_size=8), st.integers(0, 3))
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_what_goes_in_comes_out(tmp_path: Path, lengths: list[int], big: int) -> None:
    parts = [os.urandom(length) for length in (*lengths, *[PIECE + 7] * big)]
    path = tmp_path / "queue" / "x.body"

    async def there_and_back() -> None:
        body = await spooled(path, *parts)
        assert (body is None) == (sum(map(len, parts)) > INLINE)
        assert await read(body, path) == b"".join(parts)
        assert size(body, path) == sum(map(len, parts))

    asyncio.run(there_and_back())


async def test_a_file_is_for_its_user_only(tmp_path: Path) -> None:
    path = tmp_path / "queue" / "x.body"
    before = os.umask(0o077)
    try:
        await spooled(path, bytes(INLINE + 1))
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


async def test_what_is_discarded_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "queue" / "x.body"
    Spool(path).discard()  # nothing was written: nothing to do
    spool = Spool(path)
    await spool.write(bytes(INLINE + 1))
    assert path.exists()
    spool.discard()
    assert not path.exists()
    spool.discard()


@pytest.mark.parametrize("length", [INLINE + 1, 3 * PIECE])
@pytest.mark.linux  # for /dev/full
async def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path, length: int) -> None:
    path = tmp_path / "queue" / "x.body"
    path.parent.mkdir()
    path.symlink_to("/dev/full")
    spool = Spool(path)
    with pytest.raises(DiskFullError):
        await spool.write(bytes(length))
    spool.discard()
    assert not path.is_symlink()


async def test_a_body_that_is_discarded_while_it_is_written_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "queue" / "x.body"
    for _ in range(20):
        spool = Spool(path)
        writing = asyncio.ensure_future(spool.write(bytes(INLINE + 1)))
        await asyncio.sleep(0)
        writing.cancel()
        await asyncio.wait([writing])
        spool.discard()
        assert not path.exists()


async def test_a_file_that_is_missing_is_an_error_of_the_state(tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        await read(None, tmp_path / "nothing")
    with pytest.raises(StoreError):
        content.size(None, tmp_path / "nothing")


async def test_a_folder_that_cannot_be_made_is_an_error_of_the_state(tmp_path: Path) -> None:
    (tmp_path / "queue").write_text("a file is in the way")
    with pytest.raises(StoreError):
        await spooled(tmp_path / "queue" / "x.body", bytes(INLINE + 1))
