"""The card of an app: what becomes of its deploy, and later of the app; it outlives the kernel."""

from __future__ import annotations

from typing import Any

import anywidget
import traitlets

from fal_notebook.deploy_progress import LOG_LINES, Progress
from fal_notebook.display import DeployView
from fal_notebook.widgets import STATIC
from fal_notebook.widgets.comm_relay import CommRelay

# As saved in a notebook; JupyterLab's renderer of it asks the gateway for the app of this name.
MIME = "application/vnd.fal-notebook.app+json"


class CardWidget(anywidget.AnyWidget):
    """Shows the `card`, a dictionary as `card_of` returns it."""

    _esm = STATIC / "widget.js"
    _css = STATIC / "widget.css"
    card = traitlets.Dict().tag(sync=True)

    def __init__(self, **traits: Any) -> None:
        super().__init__(**traits)
        self._relay = CommRelay(self.send)
        self.on_msg(lambda _, message, buffers: self._relay.receive(message, buffers))

    def close(self) -> None:
        """Close the widget, and end what its browser has asked for."""
        self._relay.close()
        super().close()


class DeployCard:
    """The output of a deploying cell: live here, as saved elsewhere, and as HTML and text."""

    def __init__(self, view: DeployView) -> None:
        self._view = view
        self._widget = CardWidget(card=card_of(view))

    def update(self) -> None:
        """Take over what has become of the deploy; from any thread."""
        self._widget.card = card_of(self._view)

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        bundle = self._widget._repr_mimebundle_(**kwargs)
        live = bundle[0] if isinstance(bundle, tuple) else bundle
        texts = {"text/html": self._view._repr_html_(), "text/plain": repr(self._view)}
        return {MIME: card_of(self._view), **(live or {}), **texts}


def card_of(view: DeployView) -> dict[str, Any]:
    """Return what a card shows of a deploy, as JSON."""
    progress: Progress = view.progress
    over = progress.state in ("failed", "cancelled")
    return {
        "owner": progress.owner,
        "name": progress.name,
        "state": view.state,
        "number": progress.number,
        "url": progress.url,
        "gateway": progress.gateway,
        "notes": view.notes(),
        "steps": [vars(step) for step in progress.steps],
        "error": progress.error if over else "",
        "log": progress.log[-LOG_LINES:],
    }
