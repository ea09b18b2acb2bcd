"""Who calls, and may they: the owner's token, callers' keys, runners' own keys, Host and Origin."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fal_notebook.exceptions import UnauthorizedError
from fal_notebook.gateway.store import Key

# What to do, for every refusal of who sends no key.
SEND_KEY = "send 'Authorization: Key id:secret'"

OWNER, ADMIN, API, RUNNER = "OWNER", "ADMIN", "API", "RUNNER"


@dataclass(frozen=True)
class Principal:
    """A recognised caller: whose it is and what it may do."""

    user: str
    scope: str

    @property
    def controls(self) -> bool:
        """Whether the control API is open to it."""
        return self.scope in (OWNER, ADMIN)

    @property
    def sends_python(self) -> bool:
        """Whether its pickles may reach a runner: the owner's kernel and the owner's runners."""
        return self.scope in (OWNER, RUNNER)


class Auth:
    """Recognises callers. Secrets are compared in constant time.

    Parameters
    ----------
    owner : str
        Whose gateway this is.
    token : str
        The owner's token, ``Authorization: Bearer …``.
    runner_key : callable
        Gives the expected secret of a runner id.
    runner_owner : callable
        Gives the owner of a live runner id, or None.
    """

    def __init__(
        self,
        owner: str,
        token: str,
        runner_key: Callable[[str], str],
        runner_owner: Callable[[str], str | None],
    ) -> None:
        self._owner = Principal(owner, OWNER)
        self._token = token.encode()
        self._runner_key = runner_key
        self._runner_owner = runner_owner
        self._keys: dict[str, Key] = {}

    def load(self, keys: list[Key]) -> None:
        """Take over the keys that are valid now."""
        self._keys = {key.id: key for key in keys if key.revoked_at is None}

    def identify(self, authorization: bytes | None) -> Principal | None:
        """Return the caller, None when there is no header.

        Raises
        ------
        UnauthorizedError
            When the header is there and wrong.
        """
        if not authorization:
            return None
        scheme, _, value = authorization.partition(b" ")
        if scheme.lower() == b"bearer" and hmac.compare_digest(value, self._token):
            return self._owner
        if scheme.lower() == b"key":
            if not value.strip():
                raise UnauthorizedError(f"there is no key in the header: {SEND_KEY}")
            identity, _, secret = value.decode("latin-1").partition(":")
            return self._by_key(identity, secret)
        raise UnauthorizedError("the Authorization header is not valid here")

    def _by_key(self, identity: str, secret: str) -> Principal:
        key = self._keys.get(identity)
        if key is not None:
            if hmac.compare_digest(hash_secret(secret), key.hash):
                return Principal(key.user, key.scope)
        else:
            owner = self._runner_owner(identity)
            expected = self._runner_key(identity)
            if hmac.compare_digest(secret.encode(), expected.encode()) and owner is not None:
                return Principal(owner, RUNNER)
        raise UnauthorizedError("this key is not known here or was revoked")


def may_run(principal: Principal | None, owner: str, auth: str, serve: bool) -> int:
    """Return 0 when the caller may call an app, else the HTTP status that refuses it.

    Parameters
    ----------
    owner : str
        Under whose name the app is deployed; the gateway's own user is the owner of all.
    auth : str
        ``public``: everybody; ``shared``: any key of this gateway; ``private``: the owner's keys.
    serve : bool
        False lets nobody but the owner through, whatever `auth` says.
    """
    if serve and auth == "public":
        return 0
    if principal is None:
        return 401
    return 0 if is_owner(principal, owner) or (serve and auth == "shared") else 403


def may_see(principal: Principal | None, owner: str, user: str | None) -> bool:
    """Say whether the caller may see, and cancel, a request of `user` to an app of `owner`.

    Who sent one without a key has nothing but its id to be known by.
    """
    if user is None:
        return True
    return is_owner(principal, owner) or (principal is not None and principal.user == user)


def is_owner(principal: Principal | None, owner: str) -> bool:
    """Say whether the caller is the owner of an app, or the gateway's own user."""
    return principal is not None and (principal.user == owner or principal.controls)


def new_key(user: str, scope: str, alias: str) -> tuple[Key, str]:
    """Return a new key and its full text ``id:secret``, which is shown once and not kept."""
    identity = base64.b32encode(secrets.token_bytes(10)).decode().lower()
    secret = secrets.token_hex(16)
    return Key(identity, hash_secret(secret), user, scope, alias), f"{identity}:{secret}"


def hash_secret(secret: str) -> str:
    """Return the SHA-256 under which a secret is kept."""
    return hashlib.sha256(secret.encode()).hexdigest()


_NAMES = ("127.0.0.1", "localhost", "[::1]")


class HostCheck:
    """Refuses what a web page could send: a foreign Host (DNS rebinding) or a foreign Origin."""

    def __init__(self, port: int) -> None:
        self._hosts: set[bytes] = set()
        self._origins: set[bytes] = set()
        self.add("http", port)

    def add(self, scheme: str, port: int, names: Iterable[str] = _NAMES) -> None:
        """Answer on one more port, under these names."""
        hosts = {f"{name}:{port}".encode() for name in names}
        if port == {"http": 80, "https": 443}[scheme]:  # which clients leave out
            hosts |= {name.encode() for name in names}
        self._hosts |= hosts
        self._origins |= {f"{scheme}://".encode() + host for host in hosts}

    def is_own(self, host: bytes) -> bool:
        """Say whether this is a name of the gateway, with its port."""
        return host.lower() in self._hosts

    def refusal(self, headers: dict[bytes, bytes]) -> str | None:
        """Return why a request is refused, None when it may pass."""
        if not self.is_own(headers.get(b"host", b"")):
            return "this gateway answers under its own host name only"
        origin = headers.get(b"origin")
        if origin is not None and origin.lower() not in self._origins:
            return "requests from other web pages are refused"
        return None
