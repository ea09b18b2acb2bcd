"""Deploy: a new revision is proved by one runner of its own before the app points at it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from fal_notebook.backends.base import BuildOrder
from fal_notebook.exceptions import (
    BuildError,
    ConflictError,
    ContextMissingError,
    NotFoundError,
    OptionError,
    PayloadMissingError,
    RegistryError,
)
from fal_notebook.gateway import paths, plan
from fal_notebook.gateway.build_news import BuildNews
from fal_notebook.gateway.fleet import Fleet
from fal_notebook.gateway.gateway import Deployment, Gateway
from fal_notebook.gateway.operations import credentials, secrets
from fal_notebook.gateway.operations.credentials import Credentials
from fal_notebook.gateway.operations.logs import log_tail
from fal_notebook.gateway.operations.user_server import (
    about,
    free_gpus,
    free_port,
    make_room,
    openapi_of,
)
from fal_notebook.gateway.store import App, Revision
from fal_notebook.machines import choose
from fal_notebook.options import APP_DEFAULTS, Options, app_name, explicit, parse_options

NAME_PATTERN = r"^[a-z0-9][a-z0-9-]{0,62}$"
LOG_LINES = 50
RESERVED_OWNERS = frozenset({"workflows", "comfy"})


class DeployRequest(BaseModel):
    """What a client sends to deploy a cell; the payload was uploaded before.

    ``notebook`` names who deploys, so that two notebooks do not overwrite each other's app.
    ``manifest["context"]`` is the SHA-256 of the archive of the image's build context, or of
    `app_files`, if there are such files.
    """

    name: str = Field(pattern=NAME_PATTERN)
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    payload: str = Field(pattern=r"^[0-9a-f]{64}$")
    manifest: dict[str, Any]
    options: dict[str, Any] = {}
    variables: dict[str, str] = {}
    credentials: Credentials = Credentials()
    notebook: str = Field(max_length=4096)
    target: Literal["local", "docker"] = "local"
    takeover: bool = False
    reset_scale: bool = False
    allowed_secrets: list[str] = []


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

    The newest request wins: a deploy of something else that is still under way is cancelled, one
    of the same is joined.

    Raises
    ------
    OptionError, ConflictError, NotFoundError
        When an option is wrong, another notebook owns the app, or the payload is not there.
    """
    if owner in RESERVED_OWNERS:
        raise OptionError(f"{owner!r} is a reserved name; set another owner in config.toml")
    name = app_name(request.name)
    app = gateway.store.app(owner, name)
    running = gateway.deployments.get((owner, name))
    _check_notebook(app, running, request)
    active = gateway.store.revision(app.revision) if app else None
    since = gateway.store.last_seq()
    imported = request.manifest.get("distributions")
    same = plan.up_to_date(request.digest, request.target, active, imported)
    same = same and not request.options.get("force") and not _resets(request, active)
    if same and app is not None and active is not None:
        return _unchanged(gateway, app, active, running, request, since)
    if running is not None and running.is_for(request.digest, request.target):
        return _reply(gateway, running.revision, since=0)
    revision, taken_over, notices = _revision(gateway, owner, name, request, app, active)
    _begin(gateway, revision, request, app, running)
    return _reply(gateway, revision, since, inherited=taken_over, notices=notices)


def _resets(request: DeployRequest, active: Revision | None) -> bool:
    """Say whether a reset of scaling makes another revision of the same code."""
    if active is None or not request.reset_scale:
        return False
    return plan.has_inherited(active, _merged(_defaults(request), request.options))


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
    deployment.cancel("the deploy was cancelled")


def _check_notebook(app: App | None, running: Deployment | None, request: DeployRequest) -> None:
    holder = app.notebook if app else running.notebook if running else request.notebook
    if holder != request.notebook and not request.takeover:
        raise ConflictError(
            f"the app {request.name!r} belongs to {holder}; choose another name, "
            "or add takeover=true to make it this notebook's"
        )


def _unchanged(
    gateway: Gateway,
    app: App,
    active: Revision,
    running: Deployment | None,
    request: DeployRequest,
    since: int,
) -> DeployReply:
    """Answer that what runs is what was asked for; whose it is and its scaling may change."""
    if running is not None:
        running.cancel(f"revision {active.number} was deployed again")
    if request.reset_scale and app.scaling:
        _reset_scale(gateway, app, active)
    notices = []
    if app.notebook != request.notebook:
        notices = [f"taken over from {app.notebook}"]
        app.notebook = request.notebook
        with gateway.store.transaction():
            gateway.store.put(app)
    return _reply(gateway, active, since, up_to_date=True, notices=notices)


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
    options = _merged({**_defaults(request), **taken_over}, given)
    _check_files(gateway, request)
    gateway.secrets(options.secrets or ())
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
        target=request.target,
        variables={name: gateway.vault.encrypt(v) for name, v in request.variables.items()},
        credentials=credentials.encrypted(gateway, request.credentials),
    )
    notices = [choice.notice] if choice.notice else []
    notices += plan.above_host(revision.options, choice.machine, gateway.host)
    return revision, taken_over, notices


def _check_files(gateway: Gateway, request: DeployRequest) -> None:
    """Refuse when a file is not there, or holds a secret; the payload comes first."""
    if not paths.blob(gateway.state, request.payload).is_file():
        raise PayloadMissingError("the payload was not uploaded; deploy the cell again")
    secrets.refuse_in_payload(gateway, request.payload, request.allowed_secrets)
    context = _context(gateway, request.manifest)
    if context is not None and not context.is_file():
        raise ContextMissingError("the app's files were not uploaded; deploy the cell again")
    if context is not None:
        secrets.refuse_in_context(gateway, context.name, bool(request.options.get("app_files")))


def _context(gateway: Gateway, manifest: dict[str, Any]) -> Path | None:
    """Return the archive of the image's build context, or of `app_files`, if there is one."""
    digest = manifest.get("context")
    if digest is None:
        return None
    if not isinstance(digest, str) or re.fullmatch(r"[0-9a-f]{64}", digest) is None:
        raise OptionError("the manifest's context is no SHA-256")
    return paths.blob(gateway.state, digest)


def _defaults(request: DeployRequest) -> dict[str, Any]:
    return APP_DEFAULTS if request.manifest.get("kind") in ("app", "sdk") else {}


def _merged(taken_over: dict[str, Any], given: dict[str, Any]) -> Options:
    try:
        return parse_options({**taken_over, **given})
    except OptionError as error:
        inherited = ", ".join(name for name in taken_over if name in str(error))
        raise OptionError(
            f"{error} ({inherited} is inherited; set it too, or add reset_scale=true)"
        ) from None


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


def _begin(
    gateway: Gateway,
    revision: Revision,
    request: DeployRequest,
    app: App | None,
    before: Deployment | None,
) -> None:
    if before is not None:
        before.cancel(f"revision {revision.number} took its place")
    with gateway.store.transaction():
        gateway.store.put(revision)
        _step(gateway, revision, "accepted", f"revision {revision.number}")
    deployment = Deployment(revision, request.notebook, dict(app.scaling) if app else {})
    gateway.deployments[revision.owner, revision.app] = deployment
    fleet = gateway.fleet(revision.owner, revision.app)
    deployment.task = asyncio.ensure_future(_roll_out(gateway, fleet, deployment, before))
    # Not a `finally` of the task: one that is cancelled before it began runs none of its code.
    deployment.task.add_done_callback(functools.partial(_finish, gateway, fleet, deployment))


async def _roll_out(
    gateway: Gateway, fleet: Fleet, deployment: Deployment, before: Deployment | None
) -> None:
    """Build, prove, switch."""
    revision = deployment.revision
    if before is not None:
        await asyncio.wait([before.task])
    _step(gateway, revision, "building", "environment")
    backend = await gateway.targets.load(revision.target)
    news = BuildNews(gateway, revision, functools.partial(_step, gateway, revision, "building"))
    with contextlib.closing(news):
        revision.environment = await backend.build(_order(gateway, revision), news)
    await make_room(fleet, revision, gateway.lifecycle.stop)
    if revision.direct:
        await free_port(fleet, revision, gateway.lifecycle.stop)
    await free_gpus(fleet, revision, gateway.gpus, gateway.lifecycle.stop)
    _step(gateway, revision, "starting", "runner")
    runner = deployment.runner = gateway.lifecycle.start(fleet, revision, proving=True)
    runner.on_note = functools.partial(_step, gateway, revision, "starting")
    await runner.ready
    given = (revision.options.get("metadata") or {}).get("openapi")
    revision.openapi = given or runner.openapi or await openapi_of(runner)
    for note in about(revision, runner):
        _step(gateway, revision, "note", note)
    _switch(gateway, fleet, deployment)
    runner.proving = False


def _order(gateway: Gateway, revision: Revision) -> BuildOrder:
    payload = paths.blob(gateway.state, revision.payload)
    context = _context(gateway, revision.manifest)
    given = credentials.of(gateway, revision)
    return BuildOrder(revision.manifest, revision.options, payload, context, given)


def _switch(gateway: Gateway, fleet: Fleet, deployment: Deployment) -> None:
    """Point the app at the revision and let the runners of the one before drain."""
    store, revision = gateway.store, deployment.revision
    app = store.app(fleet.owner, fleet.name)
    app = app or App(fleet.owner, fleet.name, None, deployment.notebook)
    old = store.revision(app.revision)
    app.revision, app.notebook = revision.id, deployment.notebook
    # What was inherited is the revision's own now; what was scaled meanwhile stays on top.
    app.scaling = {k: v for k, v in app.scaling.items() if deployment.scaling.get(k) != v}
    revision.state = "ACTIVE"
    with store.transaction():
        if old is not None:
            old.state = "SUPERSEDED"
            store.put(old)
        store.put(revision)
        store.put(app)
        _step(gateway, revision, "active", f"{gateway.info.url}/run/{app.owner}/{app.name}")
    gateway.activate(app, revision)
    for other in list(fleet.runners.values()):
        if other.row.revision != revision.id:
            gateway.lifecycle.stop(other, f"revision {revision.number} took over")


def _finish(
    gateway: Gateway, fleet: Fleet, deployment: Deployment, task: asyncio.Task[None]
) -> None:
    """Clear up after a deploy; on any failure its revision is FAILED and nothing else changed."""
    key = fleet.owner, fleet.name
    if gateway.deployments.get(key) is deployment:
        del gateway.deployments[key]
    error = None if task.cancelled() else task.exception()
    if task.cancelled() or error is not None:
        reason = deployment.reason if error is None else str(error)
        log = error.log if isinstance(error, BuildError) else []
        refused_by = error.host if isinstance(error, RegistryError) else ""
        more = {"cancelled": error is None, "registry": refused_by}
        _fail(gateway, fleet, deployment, reason, log, more)
        _serve_again(gateway, fleet)
    unused = fleet.revision is None and key not in gateway.deployments
    if unused and gateway.fleets.get(key) is fleet:
        gateway.forget(fleet)


def _fail(
    gateway: Gateway,
    fleet: Fleet,
    deployment: Deployment,
    reason: str,
    log: list[str],
    more: dict[str, Any],
) -> None:
    revision, runner = deployment.revision, deployment.runner
    if runner is not None:
        log = log_tail(gateway, runner.row.id, LOG_LINES)
        if not runner.ended.is_set():
            gateway.lifecycle.kill(runner, reason)
    redact = gateway.redaction.current()
    reason, log = redact(reason), [redact(line) for line in log]
    revision.state, revision.error = "FAILED", reason
    with gateway.store.transaction():
        if gateway.store.revision(revision.id) is not None:  # else the app was deleted
            gateway.store.put(revision)
        _step(gateway, revision, "failed", reason, log=log, **more)


def _serve_again(gateway: Gateway, fleet: Fleet) -> None:
    """Let the revision that serves start runners again, if it was told to wait."""
    app = gateway.store.app(fleet.owner, fleet.name)
    if app is not None and fleet.revision is not None and not fleet.scaling.max_concurrency:
        gateway.activate(app, fleet.revision)


def _step(gateway: Gateway, revision: Revision, step: str, message: str, **more: Any) -> None:
    data = {"revision": revision.id, "step": step, "message": message, **more}
    gateway.store.emit("deploy", revision.owner, revision.app, data)
