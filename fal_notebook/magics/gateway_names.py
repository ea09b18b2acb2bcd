"""Names that the gateway knows, for completion: at once, and without a word when it is down.

No gateway is started for them. One that hangs is waited for a moment; its answer, when it comes,
is what the next Tab shows.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from fal_notebook import discovery, settings
from fal_notebook.exceptions import SettingError

THREAD = "fal-notebook-names"
_FRESH = 2.0
_PATIENCE = 0.12


class GatewayNames:
    """Names of apps, secrets and keys, asked for at most once in `fresh` seconds."""

    def __init__(self, fresh: float = _FRESH) -> None:
        self._fresh = fresh
        self._questions: dict[str, _Question] = {}

    def apps(self) -> list[str]:
        """Return the names of apps; ``owner/name`` where the owner is another."""
        return self._known("/api/apps", _app)

    def secrets(self) -> list[str]:
        """Return the names of stored secrets."""
        return self._known("/api/secrets", lambda secret: str(secret["name"]))

    def keys(self) -> list[str]:
        """Return the ids of keys."""
        return self._known("/api/keys", lambda key: str(key["id"]))

    def _known(self, path: str, name: Callable[[Any], str]) -> list[str]:
        question = self._questions.get(path)
        if question is None:
            question = self._questions[path] = _Question(path, name)
        question.ask(self._fresh)
        return question.names


class _Question:
    """The last names that the gateway gave at a path; they stay known while it is silent."""

    def __init__(self, path: str, name: Callable[[Any], str]) -> None:
        self.names: list[str] = []
        self._path = path
        self._name = name
        self._asked = float("-inf")
        self._thread = threading.Thread()

    def ask(self, fresh: float) -> None:
        """Ask anew unless that was done just now or is still under way."""
        if self._thread.is_alive() or time.monotonic() - self._asked < fresh:
            return
        self._asked = time.monotonic()
        self._thread = threading.Thread(target=self._run, name=THREAD, daemon=True)
        self._thread.start()
        self._thread.join(_PATIENCE)

    def _run(self) -> None:
        # A gateway of another version may answer something else.
        with suppress(SettingError, KeyError, TypeError, *discovery.UNANSWERED):
            info = discovery.published(settings.state_folder())
            if info is not None:
                self.names = [self._name(item) for item in discovery.ask(info, self._path)]


def _app(app: Any) -> str:
    own = app["owner"] == settings.owner()
    return str(app["name"] if own else f"{app['owner']}/{app['name']}")
