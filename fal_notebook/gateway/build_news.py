"""What a builder says, told to who follows the deploy: its steps at once, details now and then."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fal_notebook.backends.details import Detail
from fal_notebook.gateway.gateway import Gateway
from fal_notebook.gateway.store import Revision

# At most so often a detail is told (seconds), and so much of it (characters).
PAUSE = 0.4
WIDTH = 200


class BuildNews:
    """Takes what is said of one build, on the event loop; secrets are taken out of it.

    Parameters
    ----------
    step : callable
        Gets the name of each step as it begins.
    """

    def __init__(self, gateway: Gateway, revision: Revision, step: Callable[[str], None]) -> None:
        self._gateway = gateway
        self._revision = revision
        self._step = step
        self._newest: Detail | None = None
        self._pause: asyncio.TimerHandle | None = None

    def __call__(self, line: str) -> None:
        """Take a line: a step, or a `Detail` of the one that runs."""
        if not isinstance(line, Detail):
            self._newest = None  # it was the last step's
            self._step(self._gateway.redaction.current()(line))
            return
        self._newest = line
        if self._pause is None:
            self._tell()

    def close(self) -> None:
        """Tell nothing more: the build has ended."""
        self._newest = None

    def _tell(self) -> None:
        detail, self._newest, self._pause = self._newest, None, None
        if detail is None:
            return
        text = self._gateway.redaction.current()(detail)[:WIDTH]
        data = {"revision": self._revision.id, "message": text, "part": detail.part}
        self._gateway.events.detail(self._revision.owner, self._revision.app, data)
        self._pause = asyncio.get_running_loop().call_later(PAUSE, self._tell)
