"""What a cell that says ``import fal`` is told where fal's SDK is not installed."""

from __future__ import annotations

from types import TracebackType
from typing import Any

NAME = "fal"
SENTENCE = (
    "fal's own SDK is not installed here; write `import fal_notebook as fal`, or install it with "
    "`%pip install fal`"
)


def register(shell: Any) -> None:
    """Have cells without magic say it, too; a handler of the user's own stays."""
    if not shell.custom_exceptions:
        shell.set_custom_exc((ModuleNotFoundError,), _shown)


def unregister(shell: Any) -> None:
    """Undo that, where it was done."""
    if shell.custom_exceptions == (ModuleNotFoundError,):
        shell.set_custom_exc((), None)


def _shown(
    shell: Any,
    kind: type[ModuleNotFoundError],
    error: ModuleNotFoundError,
    traceback: TracebackType,
    tb_offset: int | None = None,
) -> None:
    """Show the sentence alone; of any other module what is always shown."""
    if error.name == NAME:
        error.msg = SENTENCE
        error._render_traceback_ = lambda: [f"{kind.__name__}: {SENTENCE}"]  # type: ignore[attr-defined]
    shell.showtraceback((kind, error, traceback), tb_offset=tb_offset, running_compiled_code=True)
