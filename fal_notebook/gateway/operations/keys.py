"""Callers' keys: created, listed, revoked; a secret is shown once and kept only as a hash."""

from __future__ import annotations

import re
import time
from typing import Any

from fal_notebook.exceptions import NotFoundError, OptionError
from fal_notebook.gateway.auth import ADMIN, API, new_key
from fal_notebook.gateway.gateway import Gateway
from fal_notebook.gateway.store import Key

_USER = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
# An alias stands in a table.
LONGEST_ALIAS = 64


def create(
    gateway: Gateway, scope: str = API, alias: str = "", user: str | None = None
) -> dict[str, Any]:
    """Make a key and return it with its text, for the only time.

    Parameters
    ----------
    user : str
        Whose it is: apps see it as their caller. The gateway's owner if it is not given.

    Raises
    ------
    OptionError
        When the scope is neither API nor ADMIN, the user's name cannot be one or is not that of
        the owner, who alone controls, or the alias cannot be shown.
    """
    if scope not in (API, ADMIN):
        raise OptionError(f"scope={scope} is not allowed: API (call apps) or ADMIN (also control)")
    if user is not None and not _USER.fullmatch(user):
        raise OptionError(f"user={user!r} is not allowed: lower-case letters, digits and hyphens")
    if scope == ADMIN and user not in (None, gateway.owner):
        raise OptionError(f"an ADMIN key is the owner's: leave user={user} out, or scope=ADMIN")
    if len(alias) > LONGEST_ALIAS or not alias.isprintable():
        kept = f"alias= is at most {LONGEST_ALIAS} characters that can be printed"
        raise OptionError(f"{kept}, not {alias[:LONGEST_ALIAS]!r}")
    key, text = new_key(user or gateway.owner, scope, alias)
    _save(gateway, key, "created")
    return {**_public(key), "key": text}


def list_keys(gateway: Gateway) -> list[dict[str, Any]]:
    """Return every key without its secret, oldest first."""
    return [_public(key) for key in gateway.store.select(Key, "1 ORDER BY created_at")]


def revoke(gateway: Gateway, identity: str) -> None:
    """Refuse a key from now on.

    Raises
    ------
    NotFoundError
        When there is no such key.
    """
    found = gateway.store.select(Key, "id = ?", identity)
    if not found:
        raise NotFoundError(f"there is no key {identity}; list them with: keys list")
    found[0].revoked_at = found[0].revoked_at or time.time()
    _save(gateway, found[0], "revoked")


def _save(gateway: Gateway, key: Key, what: str) -> None:
    with gateway.store.transaction():
        gateway.store.put(key)
        gateway.store.emit("key", key.user, "", {"key": key.id, "change": what})
    gateway.auth.load(gateway.store.select(Key))


def _public(key: Key) -> dict[str, Any]:
    return {
        "id": key.id,
        "user": key.user,
        "scope": key.scope,
        "alias": key.alias,
        "created_at": key.created_at,
        "revoked_at": key.revoked_at,
    }
