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
from urllib.parse import quote

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

    def envs(self) -> list[str]:
        """Return the names of environments."""
        return self._known("/api/envs", lambda env: str(env["name"]))

    def keys(self) -> list[str]:
        """Return the ids of keys."""
        return self._known("/api/keys", lambda key: str(key["id"]))

    def runners(self, app: str) -> list[str]:
        """Return the ids of an app's runners."""
        return self._of_app(app, "runners", lambda runner: str(runner["id"]))

    def revisions(self, app: str) -> list[str]:
        """Return the numbers of an app's revisions, the newest first."""
        return self._of_app(app, "revisions", lambda revision: str(revision["number"]))

    def failed(self, app: str) -> list[str]:
        """Return the ids of the requests that are samples of an app's errors."""
        return self._of_app(app, "errors", lambda error: str(error["request"]))

    def _of_app(self, app: str, what: str, name: Callable[[Any], str]) -> list[str]:
        with suppress(SettingError):
            return self._known(f"{_path(app)}/{what}", name)
        return []

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
            if info is not None and discovery.is_alive(info):
                self.names = [self._name(item) for item in discovery.ask(info, self._path)]


def _path(app: str) -> str:
    """Return where the gateway tells of an app that is called as on a command line."""
    owner, _, name = app.rpartition("/")
    return f"/api/apps/{quote(owner or settings.owner(), '')}/{quote(name.replace('_', '-'), '')}"


def _app(app: Any) -> str:
    own = app["owner"] == settings.owner()
    return str(app["name"] if own else f"{app['owner']}/{app['name']}")
