"""A pull or push as the engine tells of it: what to show, the digest, what a refusal means."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from typing import Any

from docker.auth import encode_header

from fal_notebook.backends.details import Detail
from fal_notebook.backends.logins import Login
from fal_notebook.exceptions import RegistryError
from fal_notebook.registries import Reference, explain, refused

# At most so often something is shown (seconds).
PAUSE = 0.5

_DONE = ("Pull complete", "Already exists", "Pushed", "Layer already exists", "Mounted from")
_MOVING = ("Downloading", "Pushing")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class Transfer:
    """Follows the lines of one pull or push.

    Attributes
    ----------
    digest : str
        What the registry calls the image, once it was told.
    """

    def __init__(self, doing: str, name: str, login: Login | None) -> None:
        self.digest = ""
        self._doing, self.name, self.login = doing, name, login
        self._layers: dict[str, tuple[bool, int, int]] = {}
        self._shown_at = 0.0

    @property
    def headers(self) -> dict[str, str]:
        """Credentials for the engine; docker-py is not asked for any: it reads them only once."""
        known = {} if self.login is None else self.login.for_engine
        return {"X-Registry-Auth": encode_header(known).decode()}

    def take(self, line: Mapping[str, Any], progress: Callable[[str], None]) -> None:
        """Take one line; raise what it says of a failure.

        Raises
        ------
        RegistryError
        """
        if "error" in line:
            raise self.error(str(line["error"]))
        found = _DIGEST.search(str(line.get("status", "")))
        digest = line.get("aux", {}).get("Digest") or (found[0] if found else "")
        self.digest = digest or self.digest
        if self._is_news(line) and time.monotonic() - self._shown_at >= PAUSE:
            self._shown_at = time.monotonic()
            progress(self.detail)

    def error(self, said: str) -> RegistryError:
        """Return what to raise for the engine's reason."""
        login = None if self.login is None else (self.login.username, self.login.source)
        host = Reference.of(self.name).host if refused(said) else ""
        return RegistryError(explain(self._doing, self.name, said, login), host=host)

    @property
    def detail(self) -> Detail:
        """How far it is: of the bytes that are known to be moved, else of the layers."""
        done = sum(is_done for is_done, _, _ in self._layers.values())
        moved = sum(current for _, current, _ in self._layers.values()) / 1e6
        total = sum(total for _, _, total in self._layers.values()) / 1e6
        size = f", {moved:.1f} of {total:.1f} MB" if total else ""
        part = moved / total if total else done / len(self._layers)
        return Detail(f"{done} of {len(self._layers)} layers{size}", part)

    def _is_news(self, line: Mapping[str, Any]) -> bool:
        layer, status = line.get("id"), str(line.get("status", ""))
        if not layer or status.startswith("Pulling from"):
            return False
        _, current, total = self._layers.get(layer, (False, 0, 0))
        detail = line.get("progressDetail") or {}
        if status.startswith(_MOVING):
            current, total = detail.get("current", current), detail.get("total", total)
            current, total = current or 0, max(total or 0, current or 0)
        is_done = status.startswith(_DONE)
        self._layers[layer] = (is_done, total if is_done else current, total)
        return True
