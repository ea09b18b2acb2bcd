"""One request to the storage, as those who act on it see it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from starlette.types import Receive, Scope, Send

from fal_notebook.gateway.headers import Header
from fal_notebook.gateway.storage.table import StoredFile

# In the scope of a request that came by an address of which callers of apps know nothing.
PUBLIC_BASE = "fal_notebook.public_base"


@dataclass(frozen=True)
class Call:
    """A request: what its path names, and the ASGI callables."""

    scope: Scope
    headers: dict[bytes, bytes]
    named: dict[str, str]
    receive: Receive
    send: Send

    @property
    def base(self) -> str:
        """The scheme and host by which the request came; the host was checked before."""
        host = self.headers.get(b"host", b"").decode("latin-1")
        return f"{self.scope['scheme']}://{host}"

    def url_of(self, file: StoredFile, base: str = "") -> str:
        """Return the URL under which a file is read, by default by everybody."""
        base = base or self.scope.get(PUBLIC_BASE, self.base)
        return f"{base}/storage/files/{file.id}/{quote(file.name, safe='')}"

    async def answer(self, content: dict[str, Any], *headers: Header) -> None:
        """Send JSON."""
        body = json.dumps(content).encode()
        all_headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            *headers,
        ]
        await self.send({"type": "http.response.start", "status": 200, "headers": all_headers})
        await self.send({"type": "http.response.body", "body": body})
