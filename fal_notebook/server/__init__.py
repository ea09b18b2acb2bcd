"""Jupyter server extension: the gateway under Jupyter's base URL, for whoever is logged in there.

The browser reaches apps, queue, storage and control API at ``{base_url}fal/…`` without going
through a kernel. It never holds the owner's token, and apps never see Jupyter's cookies.
"""

from __future__ import annotations

from typing import Any


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    return [{"module": "fal_notebook.server"}]


def _load_jupyter_server_extension(server: Any) -> None:
    """Answer below ``fal/``; `server` is the ``ServerApp``."""
    from fal_notebook.server.handler import routes

    server.web_app.add_handlers(".*$", routes(server.web_app.settings["base_url"]))
