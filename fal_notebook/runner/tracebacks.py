"""Tracebacks of the user's code as its author expects them: with cell lines, without our frames."""

from __future__ import annotations

import ast
import asyncio
import concurrent.futures
import functools
import linecache
import os
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, TracebackType

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
            found = self._source_of(code)
            if found is not None and not os.path.exists(code.co_filename):
                source, line = found
                start = code.co_firstlineno - line
                _add(code.co_filename, max(start, 0), source.splitlines(keepends=True))

    def _source_of(self, code: CodeType) -> tuple[str, int] | None:
        """Return the source that holds a function, and the line in it where that begins."""
        qualname = getattr(code, "co_qualname", code.co_name)  # since Python 3.11
        holder = qualname.partition(".")[0]
        own = self._sources.get(code.co_name) if holder == code.co_name else None
        if own is not None and "lambda" not in code.co_name:
            return own, 1
        if "<locals>" in qualname and holder not in self._sources:
            return None  # others may have a function of that name
        classes = [self._sources[holder]] if holder in self._sources else self._sources.values()
        lines = ((text, _line_in(text, code.co_name)) for text in classes)
        return next(((text, line) for text, line in lines if line), None)


@functools.lru_cache(maxsize=64)
def _line_in(source: str, name: str) -> int:
    """Return the line at which a class's source defines a method, with its decorators; or 0."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    try:
        nodes = [n for n in ast.walk(ast.parse(source)) if isinstance(n, kinds) and n.name == name]
    except SyntaxError:
        return 0
    starts = (min(d.lineno for d in (*n.decorator_list, n)) for n in nodes)
    return next(starts, 0)


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
