"""The lines of several runners in the order of time, from where a cursor stands."""

from __future__ import annotations

import functools
import heapq
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from fal_notebook.gateway import paths
from fal_notebook.gateway.logs import pieces
from fal_notebook.gateway.logs.cursor import Cursor
from fal_notebook.gateway.logs.lines import Line, Wanted, parse
from fal_notebook.gateway.logs.redaction import Redact
from fal_notebook.gateway.store import RunnerRow
from fal_notebook.runner.log_file import LogFile

# One look goes through at most so many bytes, however few lines are wanted.
AT_MOST = 64 * 1024 * 1024
# And at so many runners that what is new of them fits here, in bytes; the others come next.
AT_ONCE = 64 * pieces.SIZE


class _Step(NamedTuple):
    """How far a runner was read, and the line that was found there, if any."""

    at: float
    row: RunnerRow
    offset: int
    line: Line | None
    finished: bool = False


class LogReader:
    """Reads log files, blocking; who uses it from the event loop does so in a thread.

    Parameters
    ----------
    cursor : Cursor
        Moves on with every line.
    between : tuple of float, optional
        Only runners' lines of about this time (unix seconds): a hint that spares reading.

    Attributes
    ----------
    more : bool
        The last look stopped before it came to the end.
    """

    def __init__(
        self,
        state: Path,
        wanted: Wanted,
        cursor: Cursor | None = None,
        between: tuple[float, float] | None = None,
    ) -> None:
        self.cursor = cursor or Cursor()
        self._folder = paths.logs_folder(state)
        self._wanted = wanted
        self._between = between
        self._at: dict[str, float] = {}
        self.more = False

    def go_back(self, rows: Sequence[RunnerRow], tail: int) -> None:
        """Move the cursor so that the last `tail` lines come next; last ended runners first."""
        found: list[tuple[float, str, int]] = []
        readable = self._readable(rows)
        for row in readable:
            oldest = found[0][0] if len(found) >= tail and found else 0.0
            if row.ended_at is not None and (row.ended_at < oldest or not tail):
                self.cursor.finish(row)  # every line of it is older
                continue
            log = self._log(row)
            wanted = functools.partial(self._raw_wanted, log.mark)
            lines, end = pieces.last_lines(log, row.ended_at is not None, tail, wanted)
            self.cursor.offsets[row.id] = end
            found = sorted([*found, *self._timed(row, lines)])
            found = found[max(0, len(found) - tail) :]
        for _, name, start in found:
            self.cursor.offsets[name] = min(self.cursor.offsets[name], start)
        shown = {name for _, name, _ in found}
        for row in readable:
            if row.ended_at is not None and row.id not in shown:
                self.cursor.finish(row)

    def behind(self, rows: Sequence[RunnerRow]) -> bool:
        """Say whether there may be something new; it costs a stat of each file."""
        return any(map(self._is_behind, self._readable(rows)))

    def _is_behind(self, row: RunnerRow) -> bool:
        if self.cursor.is_done(row):
            return False
        if row.ended_at is not None:
            return True
        return pieces.size_of(self._log(row)) != self.cursor.offsets.get(row.id, 0)

    def lines(self, rows: Sequence[RunnerRow], limit: int, redact: Redact = str) -> Iterator[Line]:
        """Yield at most `limit` lines; the cursor stands behind each as it is yielded.

        `rows` are all runners of the app that did not end before the cursor's `since`.
        """
        left, budget = limit, AT_MOST
        behind = sorted(filter(self._is_behind, self._readable(rows)), key=_age)
        together = behind[: self._fitting(behind)]
        steps = heapq.merge(*map(self._steps, together), key=lambda step: step.at)
        self.more = True
        for step in steps:
            if not left or budget < 0:
                return
            budget -= self._move(step)
            if step.line is not None:
                left -= 1
                yield {**step.line, "message": redact(step.line["message"])}
        self.cursor.tidy(self._readable(rows))
        self.more = len(behind) > len(together)

    def _fitting(self, behind: Sequence[RunnerRow]) -> int:
        """Return how many of the runners may be read together: of each a piece is held."""
        held = 0
        for number, row in enumerate(behind):
            new = pieces.size_of(self._log(row)) - self.cursor.offsets.get(row.id, 0)
            held += max(0, min(new, pieces.SIZE))
            if held > AT_ONCE and number:
                return number
        return len(behind)

    def _move(self, step: _Step) -> int:
        """Move on and return by how many bytes."""
        before = self.cursor.offsets.get(step.row.id, step.offset)
        self.cursor.offsets[step.row.id] = step.offset
        if step.finished:
            self.cursor.finish(step.row)
        return max(0, step.offset - before)

    def _steps(self, row: RunnerRow) -> Iterator[_Step]:
        log, ended = self._log(row), row.ended_at is not None
        offset = self.cursor.offsets.get(row.id)
        if offset is None:
            offset = pieces.offset_of(log, self._between[0]) if self._between else 0
        while True:
            piece = pieces.next_lines(log, offset, ended)
            at = self._at.get(row.id, row.created_at)
            if piece.at_end:
                at = max(at, pieces.written_at(log, piece.lines))
            late = self._is_late(piece, log.mark)
            for raw in () if late else piece.lines:
                if not self._wanted.may_match(raw.text):
                    continue
                line = parse(raw.text, log.mark, row.id)
                at = self._at[row.id] = max(at, line["at"] or at)
                if self._wanted.matches(line):
                    yield _Step(at, row, raw.end, line)
            yield _Step(at, row, piece.end, None, finished=late or (ended and piece.at_end))
            if piece.at_end or late or piece.end == offset:
                return
            offset = piece.end

    def _is_late(self, piece: pieces.Piece, mark: bytes) -> bool:
        """Say whether a piece begins with a line of after the time that is asked for."""
        if self._between is None or not piece.lines:
            return False
        at = parse(piece.lines[0].text, mark)["at"]
        return at is not None and at > self._between[1]

    def _readable(self, rows: Sequence[RunnerRow]) -> list[RunnerRow]:
        return [row for row in rows if self._wanted.runner in ("", row.id)]

    def _log(self, row: RunnerRow) -> LogFile:
        return LogFile.of(paths.log_in(self._folder, row.id), row.secret)

    def _raw_wanted(self, mark: bytes, raw: bytes) -> bool:
        if not self._wanted.may_match(raw):
            return False
        return not self._wanted.narrow or self._wanted.matches(parse(raw, mark))

    def _timed(self, row: RunnerRow, lines: list[pieces.Raw]) -> list[tuple[float, str, int]]:
        log, found = self._log(row), list[tuple[float, str, int]]()
        at = max(row.created_at, pieces.written_at(log, lines))
        for raw in lines:
            at = max(at, parse(raw.text, log.mark)["at"] or at)
            found.append((at, row.id, raw.start))
        return found


def _age(row: RunnerRow) -> float:
    return row.created_at
