"""The cell magics as a shell sees them; what does the work is imported when it is first used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from IPython.core.magic import no_var_expand

# The module of each, the class in it, and what it does.
_MAGICS = {
    "fal_function": ("function", "FunctionMagic", "Deploy the cell's last function as an app."),
    "fal_app": ("app", "AppMagic", "Deploy the cell's last App class as an app."),
    "fal_server": ("server", "ServerMagic", "Deploy a server of one's own: all goes to its port."),
    "fal_pyproject": ("pyproject", "PyprojectMagic", "Deploy the apps of a pyproject.toml."),
}
NAMES = tuple(_MAGICS)


def with_a_body(lines: list[str]) -> list[str]:
    """Give a cell that is one line of ``%%fal_server`` a second one: IPython refuses an empty body.

    The image that it names may be all there is to say.
    """
    alone = len(lines) == 1 and lines[0].startswith("%%fal_server ")
    return [lines[0].rstrip("\n") + "\n", "\n"] if alone else lines


def cell_magic(shell: Any, name: str) -> Any:
    """Return the cell magic ``name``, one of ``NAMES``, for one shell."""
    module, worker, does = _MAGICS[name]

    def work() -> Any:
        return import_module(f"fal_notebook.magics.{module}")

    @no_var_expand
    def magic(line: str, cell: str) -> None:
        __tracebackhide__ = True
        getattr(work(), worker)(shell).cell(line, cell)

    magic.__name__, magic.__doc__ = name, does
    # IPython asks for this before the docstring: the options are listed when somebody asks.
    magic.getdoc = lambda: work().cell_help()  # type: ignore[attr-defined]
    return magic
