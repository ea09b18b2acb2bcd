"""The output of a deploying cell: updated in place by a kernel, printed twice by a terminal."""

from __future__ import annotations

import contextvars
import threading
from typing import Any

from IPython.display import display


class Output:
    """Shows one object; `update` may be called from any thread, also before `show`.

    Attributes
    ----------
    in_place : bool
        Whether what is shown changes later.
    """

    def __init__(self, shell: Any) -> None:
        # A terminal would print each update anew, between what its user types.
        self.in_place = hasattr(shell, "kernel")
        self._lock = threading.Lock()
        self._shown: Any = None
        self._printed = ""
        self._display: Any = None

    def show(self, shown: Any) -> None:
        """Show the object for the first time."""
        with self._lock:
            self._shown, self._printed = shown, repr(shown)
            self._display = display(shown, display_id=True)

    def update(self) -> None:
        """Show what the object has become, in the cell that showed it first."""
        with self._lock:
            if self.in_place and self._display is not None:
                # In a fresh context the message counts to the cell that runs now: a front end
                # finds the output by its display id, but may ignore a cell that has ended.
                contextvars.Context().run(self._display.update, self._shown)

    def end(self) -> None:
        """Print the final state where it is not updated in place, unless it stands there."""
        if not self.in_place and self._display is not None and repr(self._shown) != self._printed:
            display(self._shown)
