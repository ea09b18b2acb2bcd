"""Files on their way to the gateway's storage; its protocol is in `gateway.storage`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from fal_notebook.toolkit.exceptions import FileUploadException

if TYPE_CHECKING:
    import httpx

_LIFECYCLE = "x-fal-object-lifecycle"


def upload(
    content: bytes | Path,
    content_type: str,
    file_name: str,
    lifecycle: Mapping[str, Any] | None = None,
) -> str:
    """Store a file and return its URL; a path is sent as it is read.

    Raises
    ------
    FileUploadException
        With what the gateway says.
    """
    headers = {"content-type": content_type, "x-fal-file-name": quote(file_name)}
    if lifecycle:
        headers[_LIFECYCLE] = json.dumps(dict(lifecycle))
    with _gateway() as http:
        reply = _send(http, "POST", "/storage/files", content, headers)
    return str(reply.json()["url"])


def reserve(content_type: str, file_name: str) -> tuple[str, str]:
    """Return the URL that a file will have, and the one to which it is put."""
    body = json.dumps({"content_type": content_type, "file_name": file_name}).encode()
    path = "/rest/storage/upload/initiate?storage_type=fal-cdn-v3"
    with _gateway() as http:
        reply = _send(http, "POST", path, body, {"content-type": "application/json"}).json()
    return str(reply["file_url"]), str(reply["upload_url"])


def put(upload_url: str, content: bytes | Path, content_type: str) -> None:
    """Send the bytes of a reserved file."""
    with _gateway() as http:
        _send(http, "PUT", upload_url, content, {"content-type": content_type})


@contextmanager
def _gateway() -> Iterator[httpx.Client]:
    """Give a client of the gateway: with the runner's own key, elsewhere with the owner's token."""
    import httpx

    if "FAL_RUNNER_ID" in os.environ:
        url, key = os.environ["FAL_NOTEBOOK_URL"], f"Key {os.environ['FAL_NOTEBOOK_KEY']}"
    else:
        from fal_notebook import discovery, settings

        info = discovery.ensure(settings.state_folder())
        url, key = info.url, f"Bearer {info.token}"
    headers = {"authorization": key}
    with httpx.Client(base_url=url, headers=headers, timeout=None, trust_env=False) as http:
        yield http


def _send(
    http: httpx.Client, method: str, url: str, content: bytes | Path, headers: dict[str, str]
) -> httpx.Response:
    import httpx

    try:
        if isinstance(content, bytes):
            reply = http.request(method, url, content=content, headers=headers)
        else:
            headers = {**headers, "content-length": str(content.stat().st_size)}
            with content.open("rb") as file:
                reply = http.request(method, url, content=file, headers=headers)
    except httpx.HTTPError as error:
        raise FileUploadException(f"the file was not stored: {error}") from error
    if reply.is_error:
        raise FileUploadException(f"the file was not stored: {_detail(reply)}")
    return reply


def _detail(reply: httpx.Response) -> str:
    try:
        return str(reply.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"status {reply.status_code}"
