"""The cell magics as a shell sees them; what does the work is imported when it is first used."""

from __future__ import annotations

from typing import Any

from IPython.core.magic import no_var_expand


def function_magic(shell: Any) -> Any:
    """Return ``%%fal_function`` for one shell."""

    @no_var_expand
    def fal_function(line: str, cell: str) -> None:
        """Deploy the cell's last function as an autoscaled HTTP app."""
        __tracebackhide__ = True
        from fal_notebook.magics.function import FunctionMagic

        FunctionMagic(shell).cell(line, cell)

    # IPython asks for this before the docstring: the options are listed when somebody asks.
    fal_function.getdoc = _help  # type: ignore[attr-defined]
    return fal_function


def app_magic(shell: Any) -> Any:
    """Return ``%%fal_app`` for one shell."""

    @no_var_expand
    def fal_app(line: str, cell: str) -> None:
        """Deploy the cell's last App class as an autoscaled HTTP app."""
        __tracebackhide__ = True
        from fal_notebook.magics.app import AppMagic

        AppMagic(shell).cell(line, cell)

    fal_app.getdoc = _app_help  # type: ignore[attr-defined]
    return fal_app


def server_magic(shell: Any) -> Any:
    """Return ``%%fal_server`` for one shell."""

    @no_var_expand
    def fal_server(line: str, cell: str) -> None:
        """Deploy a server of one's own: all requests go to its port."""
        __tracebackhide__ = True
        from fal_notebook.magics.server import ServerMagic

        ServerMagic(shell).cell(line, cell)

    fal_server.getdoc = _server_help  # type: ignore[attr-defined]
    return fal_server


def _help() -> str:
    from fal_notebook.magics.function import cell_help

    return cell_help()


def _app_help() -> str:
    from fal_notebook.magics.app import app_help

    return app_help()


def _server_help() -> str:
    from fal_notebook.magics.server import server_help

    return server_help()
