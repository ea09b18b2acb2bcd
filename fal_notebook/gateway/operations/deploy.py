"""Deploy: a new revision is proved by one runner of its own before the app points at it."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import asdict
from typing import Any

from pydantic import BaseModel, Field

from fal_notebook.exceptions import ConflictError, NotFoundError, OptionError, PayloadMissingError
from fal_notebook.gateway import paths, plan
from fal_notebook.gateway.fleet import Runner
from fal_notebook.gateway.gateway import Deployment, Gateway
from fal_notebook.gateway.lifecycle import log_tail
from fal_notebook.gateway.store import App, Revision
from fal_notebook.machines import choose
from fal_notebook.options import app_name, explicit, parse_options

NAME_PATTERN = r"^[a-z0-9][a-z0-9-]{0,62}$"
RESERVED_OWNERS = frozenset({"workflows", "comfy"})


class DeployRequest(BaseModel):
    """What a client sends to deploy a cell; the payload was uploaded before.

    ``notebook`` names who deploys, so that two notebooks do not overwrite each other's app.
    """

    name: str = Field(pattern=NAME_PATTERN)
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    payload: str = Field(pattern=r"^[0-9a-f]{64}$")
    manifest: dict[str, Any]
    options: dict[str, Any] = {}
    variables: dict[str, str] = {}
    notebook: str = Field(max_length=4096)
    takeover: bool = False
    reset_scale: bool = False


class DeployReply(BaseModel):
    """What came of it. `since` is the event number after which the deploy's events follow."""

    app: str
    owner: str
    revision: str
    number: int
    up_to_date: bool
    since: int
    inherited: dict[str, Any] = {}
    notices: list[str] = []
    url: str


def deploy(gateway: Gateway, owner: str, request: DeployRequest) -> DeployReply:
    """Start a deploy, or find that the app is up to date; what runs is not touched yet.

    Raises
    ------
    OptionError, ConflictError, NotFoundError
        When an option is wrong, another notebook owns the app, or the payload is not there.
    """
    if owner in RESERVED_OWNERS:
        raise OptionError(f"{owner!r} is a reserved name; set another owner in config.toml")
    name = app_name(request.name)
    app = gateway.store.app(owner, name)
    _check_notebook(app, request)
    active = gateway.store.revision(app.revision) if app else None
    since = gateway.store.last_seq()
    running = gateway.deployments.get((owner, name))
    if active is not None and plan.up_to_date(request.digest, active) and running is None:
        if app is not None and request.reset_scale and app.scaling:
            _reset_scale(gateway, app, active)
        return _reply(gateway, active, since, up_to_date=True)
    revision, taken_over, notices = _revision(gateway, owner, name, request, app, active)
    if running is not None:
        running.task.cancel()
    with gateway.store.transaction():
        gateway.store.put(revision)
        _step(gateway, revision, "accepted", f"revision {revision.number}")
    task = asyncio.ensure_future(_roll_out(gateway, revision, request, running))
    gateway.deployments[owner, name] = Deployment(revision, task)
    return _reply(gateway, revision, since, inherited=taken_over, notices=notices)


def cancel(gateway: Gateway, owner: str, name: str) -> None:
    """Cancel the deploy that is under way; what runs stays.

    Raises
    ------
    NotFoundError
        When none is under way.
    """
    deployment = gateway.deployments.get((owner, name))
    if deployment is None:
        raise NotFoundError(f"no deploy of {owner}/{name} is under way")
    deployment.task.cancel()


def _check_notebook(app: App | None, request: DeployRequest) -> None:
    if app is not None and app.notebook != request.notebook and not request.takeover:
        raise ConflictError(
            f"the app {app.name!r} belongs to {app.notebook}; choose another name, "
            "or add takeover=true to make it this notebook's"
        )


def _revision(
    gateway: Gateway,
    owner: str,
    name: str,
    request: DeployRequest,
    app: App | None,
    active: Revision | None,
) -> tuple[Revision, dict[str, Any], list[str]]:
    given = explicit(parse_options(request.options))
    reset = request.reset_scale or given.get("app_scale_settings", False)
    taken_over = {} if reset else plan.inherited(given, app, active)
    options = parse_options({**taken_over, **given})
    if not paths.blob(gateway.state, request.payload).is_file():
        raise PayloadMissingError("the payload was not uploaded; deploy the cell again")
    choice = choose(options.machine_type, options.num_gpus, gateway.host)
    revision = Revision(
        id=uuid.uuid4().hex[:12],
        owner=owner,
        app=name,
        number=gateway.store.next_number(owner, name),
        state="PROVING",
        digest=request.digest,
        payload=request.payload,
        options=options.model_dump(mode="json"),
        explicit=given,
        manifest=request.manifest,
        machine=asdict(choice.machine),
        variables=request.variables,
    )
    return revision, taken_over, [choice.notice] if choice.notice else []


def _reply(
    gateway: Gateway,
    revision: Revision,
    since: int,
    up_to_date: bool = False,
    inherited: dict[str, Any] | None = None,
    notices: list[str] | None = None,
) -> DeployReply:
    return DeployReply(
        app=revision.app,
        owner=revision.owner,
        revision=revision.id,
        number=revision.number,
        up_to_date=up_to_date,
        since=since,
        inherited=inherited or {},
        notices=notices or [],
        url=f"{gateway.info.url}/run/{revision.owner}/{revision.app}",
    )


def _reset_scale(gateway: Gateway, app: App, active: Revision) -> None:
    app.scaling = {}
    with gateway.store.transaction():
        gateway.store.put(app)
        gateway.store.emit("scale", app.owner, app.name, {"scaling": {}})
    gateway.activate(app, active)


async def _roll_out(
    gateway: Gateway, revision: Revision, request: DeployRequest, before: Deployment | None
) -> None:
    """Build, prove, switch; on any failure the revision is FAILED and nothing else changed."""
    runner: Runner | None = None
    fleet = gateway.fleet(revision.owner, revision.app)
    try:
        if before is not None:
            await asyncio.wait([before.task])
        _step(gateway, revision, "building", "environment")
        revision.environment = await gateway.backend.build(
            revision.manifest,
            revision.options,
            lambda line: _step(gateway, revision, "building", line),
        )
        _step(gateway, revision, "starting", "runner")
        runner = gateway.lifecycle.start(fleet, revision, proving=True)
        await runner.ready
        revision.openapi = (revision.options.get("metadata") or {}).get("openapi") or runner.openapi
        _switch(gateway, revision, request, runner)
    except (Exception, asyncio.CancelledError) as error:
        cancelled = isinstance(error, asyncio.CancelledError)
        reason = "the deploy was cancelled" if cancelled else str(error)
        _fail(gateway, revision, runner, reason)
    finally:
        deployment = gateway.deployments.get((revision.owner, revision.app))
        if deployment is not None and deployment.revision is revision:
            del gateway.deployments[revision.owner, revision.app]


def _switch(gateway: Gateway, revision: Revision, request: DeployRequest, runner: Runner) -> None:
    """Point the app at the revision and let the runners of the one before drain."""
    store = gateway.store
    app = store.app(revision.owner, revision.app) or App(
        revision.owner, revision.app, None, request.notebook
    )
    old = store.revision(app.revision)
    app.revision, app.notebook, app.scaling = revision.id, request.notebook, {}
    revision.state = "ACTIVE"
    with store.transaction():
        if old is not None:
            old.state = "SUPERSEDED"
            store.put(old)
        store.put(revision)
        store.put(app)
        _step(gateway, revision, "active", f"{gateway.info.url}/run/{app.owner}/{app.name}")
    runner.proving = False
    gateway.activate(app, revision)
    fleet = gateway.fleet(app.owner, app.name)
    for other in list(fleet.runners.values()):
        if other.row.revision != revision.id:
            gateway.lifecycle.stop(fleet, other, f"revision {revision.number} took over")


def _fail(gateway: Gateway, revision: Revision, runner: Runner | None, reason: str) -> None:
    fleet = gateway.fleet(revision.owner, revision.app)
    log: list[str] = []
    if runner is not None:
        log = log_tail(paths.runner_log(gateway.state, runner.row.id), 50)
        if not runner.ended.is_set():
            gateway.lifecycle.kill(fleet, runner, reason)
    if fleet.revision is None and not any(
        key == (fleet.owner, fleet.name) and d.revision is not revision
        for key, d in gateway.deployments.items()
    ):
        gateway.forget(fleet)
    revision.state, revision.error = "FAILED", reason
    with gateway.store.transaction():
        gateway.store.put(revision)
        _step(gateway, revision, "failed", reason, log=log)


def _step(gateway: Gateway, revision: Revision, step: str, message: str, **more: Any) -> None:
    data = {"revision": revision.id, "step": step, "message": message, **more}
    gateway.store.emit("deploy", revision.owner, revision.app, data)
