"""Tracebacks of the user's code as its author expects them: with cell lines, without our frames."""

from __future__ import annotations

import asyncio
import concurrent.futures
import linecache
import os
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

# Frames between the server and the user's code, which tell the user nothing.
OURS = tuple(
    str(Path(file).parent) + os.sep
    for file in (__file__, asyncio.__file__, concurrent.futures.__file__)
)


class Tracebacks:
    """Formats errors of one payload.

    Parameters
    ----------
    sources : dict
        Source text of the payload's functions by name, from its manifest; a runner has no cells.
    """

    def __init__(self, sources: dict[str, str]) -> None:
        self._sources = sources

    def format(self, error: BaseException) -> str:
        """Return the traceback as text, from the first frame that is not ours."""
        for shown in chained(error):
            shown.__traceback__ = _without_ours(shown.__traceback__)
            self._add_lines(shown.__traceback__)
        return "".join(traceback.format_exception(type(error), error, error.__traceback__))

    def _add_lines(self, trace: TracebackType | None) -> None:
        """Tell linecache the lines of cells, whose files do not exist here."""
        for frame, _ in traceback.walk_tb(trace):
            code = frame.f_code
            source = self._sources.get(code.co_name)
            if source is not None and not os.path.exists(code.co_filename):
                _add(code.co_filename, code.co_firstlineno - 1, source.splitlines(keepends=True))


def chained(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what caused it."""
    shown: BaseException | None = error
    seen: list[BaseException] = []  # causes may form a ring
    while shown is not None and shown not in seen:
        seen.append(shown)
        yield shown
        shown = shown.__cause__ or shown.__context__


def _add(filename: str, start: int, source: list[str]) -> None:
    """Put `source` at its place among the lines of a cell that are known so far."""
    end = start + len(source)
    lines = list(linecache.getlines(filename))
    lines += ["\n"] * (end - len(lines))
    lines[start:end] = source
    linecache.cache[filename] = (0, None, lines, filename)


def _without_ours(trace: TracebackType | None) -> TracebackType | None:
    """Skip leading frames of ours; of an error that is all ours, a wrong call say, none is left."""
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(OURS):
        trace = trace.tb_next
    return trace
