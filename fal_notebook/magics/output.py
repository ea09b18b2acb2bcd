"""The output of a deploying cell: updated in place by a kernel, else told in the terminal."""

from __future__ import annotations

import contextvars
import threading
from typing import Any

from IPython.display import display

from fal_notebook.deploy_progress import Progress
from fal_notebook.display import DeployView
from fal_notebook.terminal_line import TerminalLine
from fal_notebook.widgets import is_built


class Output:
    """Shows one deploy; `update` may be called from any thread, also before `follow`.

    Parameters
    ----------
    waited : bool
        Whether the cell waits for the end, so that no prompt stands in the terminal.

    Attributes
    ----------
    follows : bool
        Whether what becomes of the deploy is shown by itself: by a kernel, in the cell that showed
        it, and by a terminal, above the prompt: steps that take long, and how it ended.
    attended : bool
        Whether somebody sits there. A script, or a notebook that a program executes, may end with
        this cell.
    """

    def __init__(self, shell: Any, waited: bool = False) -> None:
        self._in_place = hasattr(shell, "kernel")
        # Only a terminal has a prompt at all, of which a simple one is not drawn again.
        self.follows = self._in_place or hasattr(shell, "pt_app")
        self.attended = _attended(shell)
        self._line = TerminalLine(at_prompt=not waited)
        self._told = not self._in_place and (waited or self.follows)
        self._lock = threading.Lock()
        self._shown: DeployView
        self._printed = ""
        self._display: Any = None
        self._card: Any = None

    def follow(self, progress: Progress) -> None:
        """Show a deploy from now on."""
        with self._lock:
            self._shown = DeployView(progress)
            self._printed = repr(self._shown)
            self._card = _card(self._shown) if self._in_place else None
            self._display = display(self._card or self._shown, display_id=True)
            if self._told:
                self._line.follow(progress)

    def update(self) -> None:
        """Show what has become of it."""
        with self._lock:
            if self._display is None:
                return
            if self._card is not None:
                self._card.update()
            if self._in_place and (self._card is None or self._shown.over):
                # In a fresh context the message counts to the cell that runs now: a front end
                # finds the output by its display id, but may ignore a cell that has ended.
                contextvars.Context().run(self._display.update, self._card or self._shown)
            elif self._told and not self._shown.over:
                self._line.update()
            elif self.follows and self._shown.over:
                self._print()

    def end(self) -> None:
        """Print the final state where it is not updated in place, unless it stands there."""
        with self._lock:
            if not self._in_place and self._display is not None:
                self._print()

    def _print(self) -> None:
        self._line.end()
        if repr(self._shown) != self._printed:
            self._printed = repr(self._shown)
            print(self._printed, flush=True)


def _card(shown: DeployView) -> Any:
    """Return the widget of a deploy; None in a checkout without its JavaScript."""
    if not is_built():
        return None
    from fal_notebook.widgets.card import DeployCard  # with ipywidgets, which takes its time

    return DeployCard(shown)


def _attended(shell: Any) -> bool:
    if hasattr(shell, "kernel"):  # who executes notebooks lets no cell ask a user
        return bool(shell.kernel.get_parent().get("content", {}).get("allow_stdin", True))
    return hasattr(shell, "pt_app") and getattr(shell.parent, "interact", True)
