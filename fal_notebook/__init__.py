"""fal_notebook: a notebook cell becomes an autoscaled HTTP app.

Importing this package does nothing but define names; heavy parts load when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_LAZY = {
    "Client": "fal_notebook.client",
    "ContainerImage": "fal_notebook.container",
    "Handle": "fal_notebook.handle",
    "Options": "fal_notebook.options",
    "capture": "fal_notebook.payload",
    "deploy": "fal_notebook.deploying",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'fal_notebook' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted([*_LAZY, "__version__", "load_ipython_extension", "unload_ipython_extension"])


def load_ipython_extension(shell: Any) -> None:
    """Register the magics; called by ``%load_ext fal_notebook``."""
    import_module("fal_notebook.magics").register(shell)


def unload_ipython_extension(shell: Any) -> None:
    """Remove the magics again; called by ``%unload_ext fal_notebook``."""
    import_module("fal_notebook.magics").unregister(shell)
