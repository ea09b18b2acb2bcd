"""fal_notebook: a notebook cell becomes an autoscaled HTTP app.

Importing this package does nothing but define names; heavy parts load when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_LAZY = {
    "App": "fal_notebook.app",
    "Client": "fal_notebook.client",
    "ContainerImage": "fal_notebook.container",
    "Handle": "fal_notebook.handle",
    "HealthCheck": "fal_notebook.app_values",
    "Options": "fal_notebook.options",
    "RetryConfig": "fal_notebook.app_values",
    "cached": "fal_notebook.decorators",
    "capture": "fal_notebook.payload",
    "deploy": "fal_notebook.deploying",
    "endpoint": "fal_notebook.endpoints",
    "function": "fal_notebook.decorators",
    "isolated": "fal_notebook.decorators",
    "realtime": "fal_notebook.realtime_endpoint",
}
_MODULES = ("container", "exceptions", "ref", "sdk", "toolkit")
_NOT_HERE = (
    *("distributed", "workflows", "wma", "sync_dir", "synchronized_inductor_cache"),
    *("BillingComponents", "BillingDeclaration", "FalServerlessKeyCredentials"),
    *("FalServerlessHost", "LocalHost", "serverless", "cloud", "local", "wrap_app"),
)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    if name in _MODULES:
        return import_module(f"fal_notebook.{name}")
    if name in _NOT_HERE:
        raise import_module("fal_notebook.exceptions").OutOfScopeError(name)
    raise AttributeError(f"module 'fal_notebook' has no attribute {name!r}")


def __dir__() -> list[str]:
    extension = ("load_ipython_extension", "unload_ipython_extension")
    return sorted([*_LAZY, *_MODULES, "__version__", *extension])


def load_ipython_extension(shell: Any) -> None:
    """Register the magics; called by ``%load_ext fal_notebook``."""
    import_module("fal_notebook.magics").register(shell)


def unload_ipython_extension(shell: Any) -> None:
    """Remove the magics again; called by ``%unload_ext fal_notebook``."""
    import_module("fal_notebook.magics").unregister(shell)
