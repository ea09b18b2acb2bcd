"""The revisions of an app: listed, compared, brought back, copied into another environment."""

from __future__ import annotations

import time
import uuid
from dataclasses import replace
from typing import Any

from pydantic import BaseModel

from fal_notebook.envs import MAIN, name_in, name_in_main
from fal_notebook.exceptions import NotFoundError, OptionError, PayloadMissingError
from fal_notebook.gateway import difference, paths, plan
from fal_notebook.gateway.gateway import Gateway
from fal_notebook.gateway.operations import envs, rollout
from fal_notebook.gateway.operations.apps import check_deployed, find
from fal_notebook.gateway.operations.deploy import DeployReply, merged, refuse_other_env, reply
from fal_notebook.gateway.store import App, Revision
from fal_notebook.option_types import EnvName


class PromoteRequest(BaseModel):
    """From which environment to which."""

    source: EnvName
    to: EnvName = MAIN


def list_revisions(gateway: Gateway, owner: str, name: str) -> list[dict[str, Any]]:
    """Return every revision of an app, the newest first, without code and values.

    Raises
    ------
    NotFoundError
        When there is no such app and never was one.
    """
    check_deployed(gateway, owner, name)
    return [
        {
            "id": revision.id,
            "number": revision.number,
            "state": revision.state,
            "created_at": revision.created_at,
            "message": revision.options.get("message") or "",
            "origin": revision.origin,
            "error": revision.error,
            "digest": revision.digest,
            "target": revision.target,
            "explicit": revision.explicit,
        }
        for revision in _all(gateway, owner, name)
    ]


def diff(gateway: Gateway, owner: str, name: str, number: int | None = None) -> dict[str, Any]:
    """Return what changed from a revision, by default the last that served before, to the active.

    ``source``, ``options``, ``requirements``, ``captured`` and ``schema`` are unified diffs of
    text, "" where nothing changed; ``from`` and ``to`` are the two numbers, ``identical`` says
    whether both serve the same code and values, the rest of the cell included.

    Raises
    ------
    NotFoundError
        When there is no such revision.
    """
    app, active = find(gateway, owner, name)
    older = _wanted(gateway, app, active, number)
    identical = older.digest == active.digest
    numbers = {"from": older.number, "to": active.number}
    return {**numbers, "identical": identical, **difference.of(older, active)}


def rollback(gateway: Gateway, owner: str, name: str, number: int | None = None) -> DeployReply:
    """Start the rollout of a copy of an earlier revision, by default the last that served before.

    It is a new revision with the code, options and environment of that one and the scaling that is
    in force now; what runs is not touched until a runner of it is up.

    Raises
    ------
    NotFoundError, OptionError
        When there is no such revision, it serves, or it never came up; when a secret is missing.
    """
    app, active = find(gateway, owner, name)
    target = _wanted(gateway, app, active, number)
    _refuse_unless_served(target)
    options, explicit = plan.rolled_back(app, active, target)
    copy = _copy(gateway, target, owner, name, options, explicit)
    copy = replace(copy, origin=f"revision {target.number}")
    return _begin(gateway, copy, app.notebook)


def promote(gateway: Gateway, owner: str, name: str, request: PromoteRequest) -> DeployReply:
    """Start the rollout of a copy of what serves an app in one environment in another.

    As in a deploy, scaling that its code does not give is inherited there; nothing is built.

    Raises
    ------
    NotFoundError, OptionError, ConflictError
        When there is no such app or environment, or a secret is missing in that one.
    """
    name = name_in_main(name, request.source)
    app, source = _promoted(gateway, owner, name, request)
    goal = name_in(name, request.to)
    there = gateway.store.app(owner, goal)
    active = gateway.store.revision(there.revision) if there else None
    refuse_other_env(active, request.to)
    imported = source.manifest.get("distributions")
    if active and plan.up_to_date(source.digest, source.target, active, imported):
        return reply(gateway, active, gateway.store.last_seq(), up_to_date=True)
    taken_over = plan.inherited(source.explicit, there, active)
    options = merged(source.manifest, taken_over, source.explicit).model_dump(mode="json")
    copy = _copy(gateway, source, owner, goal, options, source.explicit)
    copy = replace(copy, env=request.to, origin=f"revision {source.number} of {app.name}")
    return _begin(gateway, copy, there.notebook if there else app.notebook)


def _refuse_unless_served(revision: Revision) -> None:
    which = f"revision {revision.number} of {revision.app}"
    if revision.state == "ACTIVE":
        raise OptionError(f"{which} serves already")
    if revision.state == "PROVING":
        raise OptionError(f"{which} is being deployed")
    if revision.state == "FAILED":
        raise OptionError(
            f"{which} never came up ({revision.error}); "
            f"'%fal revisions {revision.app}' shows those that did"
        )


def _promoted(
    gateway: Gateway, owner: str, name: str, request: PromoteRequest
) -> tuple[App, Revision]:
    """Return the app that is copied from, and what serves it."""
    if request.source == request.to:
        raise OptionError(f"{name} is promoted from one environment to another: give two")
    for env in (request.source, request.to):
        envs.check(gateway, env)
    app, source = find(gateway, owner, name_in(name, request.source))
    refuse_other_env(source, request.source)
    return app, source


def _begin(gateway: Gateway, copy: Revision, notebook: str) -> DeployReply:
    """Start the rollout of a copy, unless it could not be deployed as it is."""
    gateway.secrets(copy.env, copy.options["secrets"] or ())
    for digest in copy.blobs:
        if not paths.blob(gateway.state, digest).is_file():
            raise PayloadMissingError(
                f"the code or the build context of {copy.origin} is gone; run its cell again"
            )
    since, app = gateway.store.last_seq(), gateway.store.app(copy.owner, copy.app)
    running = gateway.deployments.get((copy.owner, copy.app))
    rollout.begin(gateway, copy, notebook, app, running)
    return reply(gateway, copy, since)


def _copy(
    gateway: Gateway,
    source: Revision,
    owner: str,
    name: str,
    options: dict[str, Any],
    explicit: dict[str, Any],
) -> Revision:
    return replace(
        source,
        id=uuid.uuid4().hex[:12],
        owner=owner,
        app=name,
        number=gateway.store.next_number(owner, name),
        state="PROVING",
        options=options,
        explicit=explicit,
        openapi={},
        error="",
        created_at=time.time(),
    )


def _all(gateway: Gateway, owner: str, name: str) -> list[Revision]:
    where = "owner = ? AND app = ? ORDER BY number DESC"
    return gateway.store.select(Revision, where, owner, name)


def _wanted(gateway: Gateway, app: App, active: Revision, number: int | None) -> Revision:
    """Return the revision of a number, or the last that served before the active one."""
    if number is not None:
        return _numbered(gateway, app.owner, app.name, number)
    for revision in _all(gateway, app.owner, app.name):
        if revision.state == "SUPERSEDED":
            return revision
    raise NotFoundError(f"no revision of {app.name} came up before {active.number}")


def _numbered(gateway: Gateway, owner: str, name: str, number: int) -> Revision:
    found = _all(gateway, owner, name)
    for revision in found:
        if revision.number == number:
            return revision
    known = ", ".join(str(revision.number) for revision in found[:10])
    raise NotFoundError(f"{name} has no revision {number}; the last are {known}")
