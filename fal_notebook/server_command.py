"""A shell command that starts a server: captured like a function, so that it is deployed as one."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import cloudpickle

from fal_notebook.payload import Captured, Payload
from fal_notebook.payload.items import Item
from fal_notebook.payload.manifest import python_minor
from fal_notebook.payload.secret_check import refuse_secrets
from fal_notebook.payload.secret_scan import environment_secrets
from fal_notebook.runner.envelope import pack


@dataclass(frozen=True)
class ServerCommand:
    """What a shell runs; ``{port}`` in it becomes the runner's own port."""

    name: str
    text: str

    def capture(
        self,
        identity: Mapping[str, Any],
        allow_secret: Sequence[str],
        known_secrets: Mapping[str, str],
    ) -> Payload:
        """Return the payload.

        Raises
        ------
        SecretInPayloadError
            When the command holds what looks like a key.
        """
        content, sources = self.text.encode(), {self.name: self.text}
        known = {**environment_secrets(), **known_secrets}
        refuse_secrets(content, sources, [Item(self.name, self.text)], known, allow_secret)
        captured = (Captured(self.name, "command", len(content)),)
        manifest = self._manifest(dict(identity), captured)
        return Payload(pack(manifest, content), manifest["digest"], manifest, captured, ())

    def _manifest(self, identity: dict[str, Any], captured: tuple[Captured, ...]) -> dict[str, Any]:
        identified = json.dumps([self.text, identity, python_minor()], sort_keys=True)
        return {
            "format": 1,
            "python": python_minor(),
            "implementation": sys.implementation.name,
            "interpreter": sys.executable,
            "cloudpickle": cloudpickle.__version__,
            "packages": {},
            "name": self.name,
            "setup": None,
            "kind": "server",
            "doc": None,
            "sources": {self.name: self.text},
            "digest": hashlib.sha256(identified.encode()).hexdigest(),
            "captured": [asdict(value) for value in captured],
        }
