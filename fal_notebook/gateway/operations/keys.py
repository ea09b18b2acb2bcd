"""Callers' keys: created, listed, revoked; a secret is shown once and kept only as a hash."""

from __future__ import annotations

import time
from typing import Any

from fal_notebook.exceptions import NotFoundError, OptionError
from fal_notebook.gateway.auth import ADMIN, API, new_key
from fal_notebook.gateway.gateway import Gateway
from fal_notebook.gateway.store import Key


def create(gateway: Gateway, scope: str = API, alias: str = "") -> dict[str, Any]:
    """Make a key of the gateway's owner and return it with its text, for the only time.

    Raises
    ------
    OptionError
        When the scope is neither API nor ADMIN.
    """
    if scope not in (API, ADMIN):
        raise OptionError(f"scope={scope} is not allowed: API (call apps) or ADMIN (also control)")
    key, text = new_key(gateway.owner, scope, alias)
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
