"""Whole lines of one log file: from an offset on, the last ones, from a time on."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from fal_notebook.gateway.logs.lines import parse
from fal_notebook.runner.log_file import LogFile, kept_from

# So much is read at a time; a longer line is cut into pieces.
SIZE = 256 * 1024
# A time is looked for until its place is known up to so many bytes.
PRECISION = 64 * 1024


class Raw(NamedTuple):
    """A line as it stands in the file, between two offsets, without its newline."""

    start: int
    end: int
    text: bytes


class Piece(NamedTuple):
    """Some lines, where the next ones start, and whether the file has no more now."""

    lines: list[Raw]
    end: int
    at_end: bool


def size_of(log: LogFile) -> int:
    """Return where a log ends, 0 when there is none."""
    try:
        return log.path.stat().st_size
    except OSError:
        return 0


def written_at(log: LogFile, lines: list[Raw]) -> float:
    """Return when the last lines were written of which none says so (unix seconds), else 0."""
    if not lines or any(raw.text.startswith(log.mark) for raw in lines):
        return 0.0
    with contextlib.suppress(OSError):
        return log.path.stat().st_mtime
    return 0.0


def next_lines(log: LogFile, offset: int, ended: bool) -> Piece:
    """Return whole lines from `offset` on, or from the oldest that is kept.

    `ended` says that nobody writes any more: then the last line needs no newline.
    """
    with _opened(log.path) as descriptor:
        if descriptor is None:
            return Piece([], offset, True)
        begin, data = _kept(descriptor, offset, SIZE)
        at_end = begin + len(data) >= os.fstat(descriptor).st_size
    if begin > offset:
        begin, data = _from_next_line(begin, data)
    end = data.rfind(b"\n") + 1
    if (ended and at_end) or (not end and len(data) >= SIZE):
        end = len(data)
    return Piece(_lines(begin, data[:end], log.mark), begin + end, at_end)


def last_lines(
    log: LogFile, ended: bool, count: int, wanted: Callable[[bytes], bool]
) -> tuple[list[Raw], int]:
    """Return the last `count` wanted lines, oldest first, and where the next one will start."""
    window = SIZE
    while True:
        with _opened(log.path) as descriptor:
            if descriptor is None:
                return [], 0
            size = os.fstat(descriptor).st_size
            # One byte more: a line that starts just here is a whole one.
            offset = max(0, size - window - 1)
            begin, data = _kept(descriptor, offset, size - offset)
        whole = not offset or begin > offset  # what is before was not kept
        if begin:
            begin, data = _from_next_line(begin, data)
        end = len(data) if ended else data.rfind(b"\n") + 1
        found = [raw for raw in _lines(begin, data[:end], log.mark) if wanted(raw.text)]
        if len(found) >= count or whole:
            return found[len(found) - min(count, len(found)) :], begin + end
        window *= 4


def offset_of(log: LogFile, at: float) -> int:
    """Return where a line starts that is older than `at` (unix seconds), not much before it.

    What names no time is passed over only where an older record follows it.
    """
    with _opened(log.path) as descriptor:
        if descriptor is None:
            return 0
        low, high = kept_from(descriptor, 0), os.fstat(descriptor).st_size
        while high - low > PRECISION:
            middle = (low + high) // 2
            record = _record_after(descriptor, middle, log.mark)
            if record is not None and record[1] < at:
                low = max(record[0], middle)
            else:
                high = middle
        return low


def _record_after(descriptor: int, offset: int, mark: bytes) -> tuple[int, float] | None:
    """Return start and time of the first record within reach, None when there is none."""
    data = os.pread(descriptor, PRECISION, offset)
    start = data.find(b"\n" + mark) + 1
    end = data.find(b"\n", start)
    if not start or end < 0:
        return None
    at = parse(data[start:end], mark)["at"]
    return None if at is None else (offset + start, at)


def _kept(descriptor: int, offset: int, size: int) -> tuple[int, bytes]:
    """Return what is kept from `offset` on; only what is certain to be no hole."""
    while True:
        begin = kept_from(descriptor, offset)
        data = os.pread(descriptor, size, begin)
        if kept_from(descriptor, begin) == begin:
            return begin, data


def _from_next_line(begin: int, data: bytes) -> tuple[int, bytes]:
    skipped = data.find(b"\n") + 1
    return begin + skipped, data[skipped:]


def _lines(start: int, data: bytes, mark: bytes) -> list[Raw]:
    found = []
    # Not splitlines: it would split at the first byte of a mark too.
    for text in data.removesuffix(b"\n").split(b"\n") if data else ():
        end = min(start + len(text) + 1, start + len(data))
        # What a child wrote before a record without ending its line is a line of its own.
        own = max(0, text.rfind(mark))
        if own:
            found.append(Raw(start, start + own, text[:own]))
        found.append(Raw(start + own, end, text[own:]))
        start = end
    return found


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int | None]:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)
