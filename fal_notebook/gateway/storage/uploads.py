"""Uploads, whole and in parts, as our toolkit and fal's clients send them."""

from __future__ import annotations

import asyncio
import secrets
import time
from datetime import datetime, timezone

from fal_notebook.gateway.exchange import RefusedRequestError
from fal_notebook.gateway.storage import intake, names
from fal_notebook.gateway.storage.call import Call
from fal_notebook.gateway.storage.files import Files
from fal_notebook.gateway.storage.intake import Body
from fal_notebook.gateway.storage.table import StoredFile
from fal_notebook.gateway.storage.tickets import TOKEN_VALID, URL_VALID, Tickets


class Uploads:
    """Acts on requests whose caller may upload; `user` is whose file it becomes.

    Parameters
    ----------
    max_upload : int
        Most bytes of one file.
    expiry : int
        For so many seconds a file is kept when its upload does not say; 0: until it is deleted.
    """

    def __init__(self, files: Files, tickets: Tickets, max_upload: int, expiry: int) -> None:
        self._files = files
        self._tickets = tickets
        self._max = max_upload
        self._expiry = expiry
        self._joining = asyncio.Lock()  # one after the other: they all want the same disk

    async def token(self, call: Call, user: str) -> None:
        """Give a bearer that stands for the key."""
        until = time.time() + TOKEN_VALID
        await call.answer(
            {
                "token": self._tickets.token(user, until),
                "token_type": "Bearer",
                "base_url": f"{call.base}/cdn",
                # Python 3.10 cannot read a Z.
                "expires_at": datetime.fromtimestamp(int(until), timezone.utc).isoformat(),
            }
        )

    async def whole(self, call: Call, user: str) -> None:
        """Store the body of the request."""
        file = self._described_by_headers(call, user)
        await self._receive(call, file)

    async def begin_multipart(self, call: Call, user: str) -> None:
        """Prepare for parts that are sent with a key."""
        file = self._described_by_headers(call, user)
        self._files.table.put(file)
        await call.answer({"access_url": call.url_of(file, call.base), "uploadId": file.id})

    async def initiate(self, call: Call, user: str) -> None:
        """Prepare for content, whole or in parts, that is sent to a signed URL."""
        told = await intake.json_object(call.headers, call.receive)
        name, kind = str(told.get("file_name") or ""), str(told.get("content_type") or "")
        file = self._described(call, user, names.file_name(name, kind), kind)
        self._files.table.put(file)
        query = self._tickets.query(file.id, time.time() + URL_VALID)
        upload_url = f"{call.base}/storage/uploads/{file.id}?{query}"
        await call.answer({"upload_url": upload_url, "file_url": call.url_of(file)})

    async def content(self, call: Call) -> None:
        """Store the body as that of a file that was prepared for."""
        await self._receive(call, self._prepared(call))

    async def part(self, call: Call) -> None:
        """Store the body as one part."""
        file, number = self._prepared(call), int(call.named["part"])
        if file.size is not None:
            raise RefusedRequestError(409, "this upload is complete")
        path = self._files.incoming()
        await intake.to_file(self._body(call), path, self._files.room)
        etag = self._files.parts.add(file.id, number, path)
        headers = (b"etag", f'"{etag}"'.encode())
        await call.answer({"partNumber": number, "etag": etag}, headers)

    async def complete(self, call: Call) -> None:
        """Join the parts; once it is done it may be asked for again, as after a lost answer."""
        file = self._prepared(call)
        told = await intake.json_object(call.headers, call.receive)
        async with self._joining:
            found = self._prepared(call)
            if found.size is None:
                path = self._files.incoming()
                size = await self._files.parts.join(file.id, told.get("parts"), path, self._max)
                found = self._files.keep(file, path, size)
        await call.answer(_about(call, found))

    async def _receive(self, call: Call, file: StoredFile) -> None:
        path = self._files.incoming()
        size = await intake.to_file(self._body(call), path, self._files.room)
        await call.answer(_about(call, self._files.keep(file, path, size)))

    def _body(self, call: Call) -> Body:
        return Body(call.headers, call.receive, self._max)

    def _prepared(self, call: Call) -> StoredFile:
        file = self._files.find(call.named["id"])
        if file is None:
            raise RefusedRequestError(404, "no such upload, or it has expired")
        return file

    def _described_by_headers(self, call: Call, user: str) -> StoredFile:
        kind = call.headers.get(b"content-type", b"").decode("latin-1")
        name = names.named_by(call.headers.get(b"x-fal-file-name"), kind)
        return self._described(call, user, name, kind)

    def _described(self, call: Call, user: str, name: str, kind: str) -> StoredFile:
        preference = call.headers.get(b"x-fal-object-lifecycle") or call.headers.get(
            b"x-fal-object-lifecycle-preference"
        )
        kept = names.lifetime(preference, self._expiry)
        expires_at = None if kept is None else time.time() + kept
        identity = secrets.token_hex(16)
        return StoredFile(identity, user, name, names.content_type(kind), expires_at)


def _about(call: Call, file: StoredFile) -> dict[str, object]:
    url = call.url_of(file)
    return {
        "url": url,
        "access_url": url,
        "file_name": file.name,
        "content_type": file.content_type,
        "file_size": file.size,
    }
