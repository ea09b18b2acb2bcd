"""Credentials of an image's build and registries: kept encrypted, given to the backend alone."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from fal_notebook.exceptions import GatewayError
from fal_notebook.gateway.store import Revision
from fal_notebook.registries import Password, resolved

if TYPE_CHECKING:
    from fal_notebook.gateway.gateway import Gateway


class RegistryLogin(BaseModel):
    """Username and password for one registry; a list is a command that prints the password."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    username: str
    password: Password


class Credentials(BaseModel):
    """What a client sends: username and password by registry, secrets of the build by name.

    A value such as ``$NAME`` stands for the stored secret of that name.
    """

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    registries: dict[str, RegistryLogin] = {}
    secrets: dict[str, str] = {}


def encrypted(gateway: Gateway, env: str, given: Credentials) -> str:
    """Return what is stored of credentials; logs and errors do not show their values from now on.

    Secrets that they name are those of `env`.

    Raises
    ------
    NotFoundError
        When a secret is named that is not stored.
    """
    credentials = given.model_dump(exclude_defaults=True)
    if not credentials:
        return ""
    with_values(gateway, env, given)
    return gateway.vault.encrypt(json.dumps(credentials))


def with_values(gateway: Gateway, env: str, given: Credentials) -> dict[str, Any]:
    """Return what a client sent with the values of stored secrets, which logs do not show.

    Raises
    ------
    NotFoundError
        When a secret is named that is not stored.
    """
    found = dict(_resolved(gateway, env, given.model_dump(exclude_defaults=True)))
    gateway.redaction.learn(_values(found))
    return found


def of(gateway: Gateway, revision: Revision) -> dict[str, Any]:
    """Return the credentials of a revision with their values, which logs do not show either.

    Raises
    ------
    NotFoundError
        When a secret that they name is not stored any more.
    """
    if not revision.credentials:
        return {}
    stored = json.loads(gateway.vault.decrypt(revision.credentials))
    found = dict(_resolved(gateway, revision.env, stored))
    gateway.redaction.learn(_values(found))
    return found


def learn(gateway: Gateway) -> None:
    """Keep what revisions have been given out of logs, from the beginning of a gateway on."""
    for revision in gateway.store.select(Revision, "credentials != ''"):
        with contextlib.suppress(GatewayError):  # a secret was deleted, or the key file changed
            of(gateway, revision)


def registries(gateway: Gateway, revision: Revision) -> dict[str, Any]:
    """Return the credentials of a revision's registries, by host."""
    return dict(of(gateway, revision).get("registries", {}))


def _values(credentials: dict[str, Any]) -> dict[str, str]:
    """Return what nobody may see of credentials, by what is shown in its place."""
    registries = credentials.get("registries", {}).items()
    passwords = {
        f"password of {host}": registry["password"]
        for host, registry in registries
        if isinstance(registry["password"], str)
    }
    return {**passwords, **credentials.get("secrets", {})}


def _resolved(gateway: Gateway, env: str, value: Any) -> Any:
    """Return a copy of JSON values in which stored secrets stand for their names."""
    if isinstance(value, dict):
        return {name: _resolved(gateway, env, inner) for name, inner in value.items()}
    if isinstance(value, list):
        return value
    return resolved(value, lambda name: gateway.secrets(env, [name])[name])
