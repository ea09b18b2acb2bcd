"""Environments: made, listed, deleted when no app is left in them."""

from __future__ import annotations

from typing import Any

from fal_notebook.envs import MAIN, check_env_name
from fal_notebook.exceptions import ConflictError, NotFoundError
from fal_notebook.gateway.gateway import Gateway
from fal_notebook.gateway.store import App, Env, Secret


def create(gateway: Gateway, name: str) -> None:
    """Make an environment.

    Raises
    ------
    OptionError, ConflictError
        When that is no name for one, or it is there already.
    """
    check_env_name(name)
    if _exists(gateway, name):
        raise ConflictError(f"there is an environment {name} already; deploy to it with env={name}")
    with gateway.store.transaction():
        gateway.store.put(Env(name))
        gateway.store.emit("env", gateway.owner, "", {"env": name, "change": "created"})


def list_envs(gateway: Gateway) -> list[dict[str, Any]]:
    """Return every environment, main first, with its apps and the number of its secrets."""
    names = [MAIN, *(env.name for env in gateway.store.select(Env, "1 ORDER BY name"))]
    return [
        {
            "name": name,
            "apps": _apps(gateway, name),
            "secrets": len(gateway.store.select(Secret, "env = ?", name)),
        }
        for name in names
    ]


def delete(gateway: Gateway, name: str) -> None:
    """Delete an environment and its secrets.

    Raises
    ------
    ConflictError
        When it is main, or has apps.
    NotFoundError
    """
    if name == MAIN:
        raise ConflictError("main cannot be deleted: apps are there that name no environment")
    check(gateway, name)
    if apps := _apps(gateway, name):
        raise ConflictError(
            f"the environment {name} has apps: {', '.join(apps)}; delete them first"
        )
    with gateway.store.transaction():
        gateway.store.delete_env(name)
        gateway.store.emit("env", gateway.owner, "", {"env": name, "change": "deleted"})


def check(gateway: Gateway, name: str) -> None:
    """Refuse an environment that there is not.

    Raises
    ------
    NotFoundError
    """
    if not _exists(gateway, name):
        raise NotFoundError(
            f"there is no environment {name}; make it with '%fal env create {name}' "
            f"(in a shell: fal-notebook env create {name})"
        )


def _exists(gateway: Gateway, name: str) -> bool:
    return name == MAIN or bool(gateway.store.select(Env, "name = ?", name))


def _apps(gateway: Gateway, env: str) -> list[str]:
    """Return the names of its apps, of those too whose first deploy is under way."""
    found = gateway.store.select(App, "revision IN (SELECT id FROM revisions WHERE env = ?)", env)
    deploying = [d.revision for d in gateway.deployments.values() if d.revision.env == env]
    return sorted(
        {_shown(gateway, each.owner, each.name) for each in found}
        | {_shown(gateway, each.owner, each.app) for each in deploying}
    )


def _shown(gateway: Gateway, owner: str, name: str) -> str:
    return name if owner == gateway.owner else f"{owner}/{name}"
