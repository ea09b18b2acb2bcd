"""Deploy: what is asked for becomes a new revision, which `rollout` brings to serve."""

from __future__ import annotations

import uuid
from dataclasses import asdict
from typing import Any, Literal

from pydantic import BaseModel, Field

from fal_notebook.envs import MAIN, name_in
from fal_notebook.exceptions import (
    ConflictError,
    ContextMissingError,
    NotFoundError,
    OptionError,
    PayloadMissingError,
)
from fal_notebook.gateway import paths, plan
from fal_notebook.gateway.gateway import Deployment, Gateway
from fal_notebook.gateway.operations import credentials, envs, rollout, secrets
from fal_notebook.gateway.operations.credentials import Credentials
from fal_notebook.gateway.store import App, Revision
from fal_notebook.machines import choose
from fal_notebook.option_types import EnvName
from fal_notebook.options import APP_DEFAULTS, Options, app_name, explicit, parse_options

NAME_PATTERN = r"^[a-z0-9][a-z0-9-]{0,62}$"
RESERVED_OWNERS = frozenset({"workflows", "comfy"})


class DeployRequest(BaseModel):
    """What a client sends to deploy a cell; the payload was uploaded before.

    ``notebook`` names who deploys, so that two notebooks do not overwrite each other's app.
    ``manifest["context"]`` is the SHA-256 of the archive of the image's build context, or of
    `app_files`, if there are such files. In another environment than main the app is called
    ``NAME--ENV``.
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
    env: EnvName = MAIN
    takeover: bool = False
    reset_scale: bool = False
    allow_secret: list[str] = []
    allowed_secrets: list[str] = []


class DeployReply(BaseModel):
    """What came of it. `since` is the event number after which the deploy's events follow.

    `gateway` is the id of this one.
    """

    app: str
    owner: str
    revision: str
    number: int
    up_to_date: bool
    since: int
    inherited: dict[str, Any] = {}
    notices: list[str] = []
    url: str
    gateway: str


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
    envs.check(gateway, request.env)
    name = name_in(app_name(request.name), request.env)
    app = gateway.store.app(owner, name)
    running = gateway.deployments.get((owner, name))
    _check_notebook(app, running, request)
    active = gateway.store.revision(app.revision) if app else None
    refuse_other_env(active or (running.revision if running else None), request.env)
    since = gateway.store.last_seq()
    imported = request.manifest.get("distributions")
    same = plan.up_to_date(request.digest, request.target, active, imported)
    same = same and not request.options.get("force") and not _resets(request, active)
    # What does not come up may have lost its image, say: it is built and proven again.
    same = same and not gateway.fleet(owner, name).is_failing
    if same and app is not None and active is not None:
        return _unchanged(gateway, app, active, running, request, since)
    if running is not None and running.is_for(request.digest, request.target):
        return reply(gateway, running.revision, since=0)
    revision, taken_over, notices = _revision(gateway, owner, name, request, app, active)
    rollout.begin(gateway, revision, request.notebook, app, running)
    return reply(gateway, revision, since, inherited=taken_over, notices=notices)


def _resets(request: DeployRequest, active: Revision | None) -> bool:
    """Say whether a reset of scaling makes another revision of the same code."""
    if active is None or not request.reset_scale:
        return False
    return plan.has_inherited(active, merged(request.manifest, {}, request.options))


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
    return reply(gateway, active, since, up_to_date=True, notices=notices)


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
    options = merged(request.manifest, taken_over, given)
    _check_files(gateway, request)
    gateway.secrets(request.env, options.secrets or ())
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
        credentials=credentials.encrypted(gateway, request.env, request.credentials),
        env=request.env,
    )
    notices = [choice.notice] if choice.notice else []
    notices += plan.above_host(revision.options, choice.machine, gateway.host)
    return revision, taken_over, notices


def _check_files(gateway: Gateway, request: DeployRequest) -> None:
    """Refuse when options or a file hold a secret, or one is not there; the payload comes first."""
    secrets.refuse_in_options(gateway, request.options, request.allow_secret)
    if not paths.blob(gateway.state, request.payload).is_file():
        raise PayloadMissingError("the payload was not uploaded; deploy again")
    secrets.refuse_in_payload(gateway, request.payload, request.allowed_secrets)
    context = rollout.context_of(gateway, request.manifest)
    if context is not None and not context.is_file():
        raise ContextMissingError("the app's files were not uploaded; deploy again")
    if context is not None:
        secrets.refuse_in_context(gateway, context.name, bool(request.options.get("app_files")))


def merged(manifest: dict[str, Any], taken_over: dict[str, Any], given: dict[str, Any]) -> Options:
    """Return the options of a revision: given ones before inherited ones before defaults.

    Raises
    ------
    OptionError
        When they contradict each other.
    """
    defaults = APP_DEFAULTS if manifest.get("kind") in ("app", "sdk") else {}
    try:
        return parse_options({**defaults, **taken_over, **given})
    except OptionError as error:
        inherited = ", ".join(name for name in taken_over if name in str(error))
        raise OptionError(
            f"{error} ({inherited} is inherited; set it too, or add reset_scale=true)"
        ) from None


def refuse_other_env(there: Revision | None, env: str) -> None:
    """Refuse a revision of another environment than the app's: ``a--b`` may be named by both.

    Raises
    ------
    ConflictError
    """
    if there is not None and there.env != env:
        raise ConflictError(
            f"there is an app {there.app} of the environment {there.env}; choose another name"
        )


def reply(
    gateway: Gateway,
    revision: Revision,
    since: int,
    up_to_date: bool = False,
    inherited: dict[str, Any] | None = None,
    notices: list[str] | None = None,
) -> DeployReply:
    """Return what the client is told of a revision that is rolled out, or serves already."""
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
        gateway=gateway.id,
    )


def _reset_scale(gateway: Gateway, app: App, active: Revision) -> None:
    app.scaling = {}
    with gateway.store.transaction():
        gateway.store.put(app)
        gateway.store.emit("scale", app.owner, app.name, {"scaling": {}})
    gateway.activate(app, active)
