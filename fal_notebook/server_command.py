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
        manifest = server_manifest("server", self.name, self.text, identity, captured)
        return Payload(pack(manifest, content), manifest["digest"], manifest, captured, ())


def server_manifest(
    kind: str,
    name: str,
    text: str,
    identity: Mapping[str, Any],
    captured: tuple[Captured, ...],
) -> dict[str, Any]:
    """Return the manifest of a server that is described by a text; `identity` is hashed too."""
    identified = json.dumps([text, dict(identity), python_minor()], sort_keys=True)
    return {
        "format": 1,
        "python": python_minor(),
        "implementation": sys.implementation.name,
        "interpreter": sys.executable,
        "cloudpickle": cloudpickle.__version__,
        "packages": {},
        "name": name,
        "setup": None,
        "kind": kind,
        "doc": None,
        "sources": {name: text},
        "digest": hashlib.sha256(identified.encode()).hexdigest(),
        "captured": [asdict(value) for value in captured],
    }
