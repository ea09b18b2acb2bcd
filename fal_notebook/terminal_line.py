"""A deploy in a terminal: one line that is written anew; elsewhere a line per step."""

from __future__ import annotations

import shutil
import sys
import threading

from fal_notebook.deploy_progress import Progress
from fal_notebook.deploy_steps import in_one_line

# Above a prompt, at which somebody types, only steps that take longer are told (seconds).
_LONG = 1.0


class TerminalLine:
    """Shows how far a deploy is on the standard output; `update` is for any thread.

    Parameters
    ----------
    at_prompt : bool
        Whether a prompt stands there, above which whole lines only can be written.
    """

    def __init__(self, at_prompt: bool = False) -> None:
        self._least = _LONG if at_prompt else 0.0
        self._in_place = not at_prompt and sys.stdout.isatty()
        self._lock = threading.Lock()
        self._progress: Progress | None = None
        self._told = 0

    def follow(self, progress: Progress) -> None:
        """Show this deploy from now on."""
        with self._lock:
            self._progress = progress
        self.update()

    def update(self) -> None:
        """Show what has become of the deploy."""
        with self._lock:
            progress = self._progress
            if progress is None or progress.state != "deploying" or not progress.steps:
                return
            if self._in_place:
                head = f"{progress.name}: "
                step = in_one_line(progress.steps[-1], _columns() - 1 - len(head))
                _write(f"\r{head}{step}\x1b[K")
            else:
                self._tell_new(progress)

    def end(self) -> None:
        """Take the line away, for what comes next."""
        with self._lock:
            if self._in_place and self._progress is not None:
                _write("\r\x1b[K")
            self._progress = None

    def _tell_new(self, progress: Progress) -> None:
        for step in progress.steps[self._told :]:
            if step.ended is None and step.seconds < self._least:
                return
            self._told += 1
            if step.seconds >= self._least:
                _write(f"{progress.name}: {step.text}\n")


def _columns() -> int:
    return shutil.get_terminal_size().columns


def _write(text: str) -> None:
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding))  # it may know no bars
    sys.stdout.flush()
