"""``%%fal_function`` as a shell sees it; what does the work is imported when it is first used."""

from __future__ import annotations

from typing import Any

from IPython.core.magic import no_var_expand


def cell_magic(shell: Any) -> Any:
    """Return the magic for one shell."""

    @no_var_expand
    def fal_function(line: str, cell: str) -> None:
        """Deploy the cell's last function as an autoscaled HTTP app."""
        __tracebackhide__ = True
        from fal_notebook.magics.function import FunctionMagic

        FunctionMagic(shell).cell(line, cell)

    # IPython asks for this before the docstring: the options are listed when somebody asks.
    fal_function.getdoc = _help  # type: ignore[attr-defined]
    return fal_function


def _help() -> str:
    from fal_notebook.magics.function import cell_help

    return cell_help()
