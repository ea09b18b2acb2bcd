"""The storage over HTTP: which path does what, and who may; the package says how it is used."""

from __future__ import annotations

import re
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.types import Receive, Scope, Send

from fal_notebook import settings
from fal_notebook.exceptions import DiskFullError, FalNotebookError, UnauthorizedError
from fal_notebook.gateway import clock
from fal_notebook.gateway.auth import Auth, Principal
from fal_notebook.gateway.exchange import ClientGoneError, RefusedRequestError
from fal_notebook.gateway.replies import BAD_REQUEST, error_reply
from fal_notebook.gateway.storage import download
from fal_notebook.gateway.storage.call import Call
from fal_notebook.gateway.storage.expiry import EXPIRY
from fal_notebook.gateway.storage.files import Files
from fal_notebook.gateway.storage.table import StoredFile
from fal_notebook.gateway.storage.tickets import Tickets
from fal_notebook.gateway.storage.uploads import Uploads
from fal_notebook.gateway.store import Store

# Most bytes of one file, and of all (settings max_upload, storage_quota).
MAX_UPLOAD = 10 * 1000**3
QUOTA = 10 * 1000**3
# Paths that are answered here.
PREFIXES = (b"/storage/", b"/cdn/", b"/rest/storage/")

_FILE = r"/(?:storage|cdn)/files/(?P<id>[0-9a-f]{32})/(?P<name>[^/]+)"
_PART = r"(?P<part>[1-9]\d{0,4})"
_SIGNED = r"/storage/uploads/(?P<id>[0-9a-f]{32})"


Act = Callable[[Call], Awaitable[None]]


_STATUS: dict[type[Exception], int] = {UnauthorizedError: 401, DiskFullError: 507}


class StorageRoutes:
    """The ASGI callable for all of `PREFIXES`."""

    def __init__(self, files: Files, auth: Auth, tickets: Tickets, uploads: Uploads) -> None:
        self.files = files
        self._auth = auth
        self._tickets = tickets
        self._routes: list[tuple[str, re.Pattern[str], Act]] = [
            (method, re.compile(pattern, re.ASCII), act)
            for method, pattern, act in (
                ("GET", _FILE, self._read),
                ("HEAD", _FILE, self._read),
                ("DELETE", _FILE, self._by_owner(self._delete)),
                ("POST", "/storage/files", self._by_key(uploads.whole)),
                ("POST", "/cdn/files/upload", self._by_key(uploads.whole)),
                ("POST", "/cdn/files/upload/multipart", self._by_key(uploads.begin_multipart)),
                ("PUT", f"{_FILE}/multipart/(?P=id)/{_PART}", self._by_owner(uploads.part)),
                ("POST", f"{_FILE}/multipart/(?P=id)/complete", self._by_owner(uploads.complete)),
                ("POST", "/rest/storage/auth/token", self._by_key(uploads.token)),
                ("POST", "/rest/storage/upload/initiate", self._by_key(uploads.initiate)),
                ("POST", "/rest/storage/upload/initiate-multipart", self._by_key(uploads.initiate)),
                ("PUT", _SIGNED, self._signed(uploads.content)),
                ("PUT", f"{_SIGNED}/{_PART}", self._signed(uploads.part)),
                ("POST", f"{_SIGNED}/complete", self._signed(uploads.complete)),
            )
        ]

    @classmethod
    def of_state(cls, state: Path, store: Store, auth: Auth) -> StorageRoutes:
        """Return the storage of a state folder, with the limits that are set."""
        files = Files(state, settings.setting("storage_quota", QUOTA, least=0))
        tickets = Tickets(store.note("storage_secret", lambda: secrets.token_hex(32)))
        limit = settings.setting("max_upload", MAX_UPLOAD, least=1)
        expiry = settings.setting("storage_expiry", EXPIRY)
        return cls(files, auth, tickets, Uploads(files, tickets, limit, expiry))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        try:
            await self._dispatch(scope, receive, send)
        except ClientGoneError:
            pass
        except FalNotebookError as error:
            reply = error_reply(_STATUS.get(type(error), 500), str(error), kind=_kind(error))
            await reply(send)
        except RefusedRequestError as error:
            await error_reply(error.status, str(error))(send)
        except UnicodeEncodeError:  # of JSON with a lone surrogate
            detail = "the request holds half a character, such as \\ud800"
            await error_reply(422, detail)(send)

    async def _dispatch(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        _refuse_leading_out(path)
        found = [
            (method, match, act)
            for method, pattern, act in self._routes
            if (match := pattern.fullmatch(path))
        ]
        for method, match, act in found:
            if method == scope["method"]:
                named = match.groupdict()
                await act(Call(scope, dict(scope["headers"]), named, receive, send))
                return
        if found:
            allowed = ", ".join(method for method, _, _ in found)
            raise RefusedRequestError(405, f"this path takes {allowed}")
        raise RefusedRequestError(404, "no such file")

    # --- who may -----------------------------------------------------------------------------
    def _by_key(self, act: Callable[[Call, str], Awaitable[None]]) -> Act:
        async def checked(call: Call) -> None:
            await act(call, self._principal(call).user)

        return checked

    def _by_owner(self, act: Act) -> Act:
        async def checked(call: Call) -> None:
            self._refuse_others(call)
            await act(call)

        return checked

    def _signed(self, act: Act) -> Act:
        async def checked(call: Call) -> None:
            query = call.scope["query_string"].decode("latin-1")
            if not self._tickets.admits(call.named["id"], query, clock.ago(0)):
                raise RefusedRequestError(403, "the upload URL is not valid, or not any more")
            await act(call)

        return checked

    def _refuse_others(self, call: Call) -> None:
        principal, file = self._principal(call), self.files.find(call.named["id"])
        if file is not None and not (principal.controls or principal.user == file.owner):
            raise RefusedRequestError(403, "this file is another user's")

    def _principal(self, call: Call) -> Principal:
        authorization = call.headers.get(b"authorization", b"")
        scheme, _, token = authorization.decode("latin-1").partition(" ")
        if scheme.lower() == "bearer" and (user := self._tickets.user_of(token, clock.ago(0))):
            return Principal(user, "UPLOAD")
        principal = self._auth.identify(authorization)
        if principal is None:
            raise UnauthorizedError("stored files need a key: send 'Authorization: Key id:secret'")
        return principal

    # --- the files themselves ----------------------------------------------------------------
    def _find(self, call: Call) -> StoredFile:
        file = self.files.find(call.named["id"])
        if file is None or file.size is None or file.name != call.named["name"]:
            raise RefusedRequestError(404, "no such file, or it has expired")
        return file

    async def _read(self, call: Call) -> None:
        file = self._find(call)
        descriptor = self.files.open(file)
        await download.answer(file, descriptor, call.scope, call.receive, call.send)

    async def _delete(self, call: Call) -> None:
        self.files.remove(self._find(call))
        await call.answer({"deleted": True})


def _kind(error: FalNotebookError) -> str:
    return BAD_REQUEST if isinstance(error, UnauthorizedError) else "internal_error"


def _refuse_leading_out(path: str) -> None:
    """Refuse a path that would lead out of the storage if it were one of the disk."""
    parts = path.split("/")
    if ".." in parts or "." in parts or "//" in path or "\0" in path or "\\" in path:
        raise RefusedRequestError(400, "a file's path may not hold '..', '//', '\\' or NUL")
