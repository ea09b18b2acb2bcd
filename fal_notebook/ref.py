"""The app that this process serves, for code that is not one of its methods."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fal_notebook.app import App

_current: App | None = None


def set_current_app(app: App | None) -> None:
    """Note the app; the runner does it before `setup`."""
    global _current
    _current = app


def get_current_app() -> App | None:
    """Return the app that this runner serves, None anywhere else."""
    return _current
