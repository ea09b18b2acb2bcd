"""A rollout: a revision is built, proved by one runner of its own, and takes over, or not."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fal_notebook.backends.base import Backend, BuildOrder
from fal_notebook.exceptions import BuildError, OptionError, RegistryError
from fal_notebook.gateway import clock, paths, start_news
from fal_notebook.gateway.build_news import BuildNews
from fal_notebook.gateway.fleet import Fleet, Runner
from fal_notebook.gateway.gateway import Deployment, Gateway
from fal_notebook.gateway.operations import credentials
from fal_notebook.gateway.operations.logs import log_tail, without_repeats
from fal_notebook.gateway.operations.user_server import (
    about,
    free_gpus,
    free_port,
    make_room,
    openapi_of,
)
from fal_notebook.gateway.store import App, Revision
from fal_notebook.image import is_ours

LOG_LINES = 50
BASE_GONE = (
    "bring that very image to this machine (docker pull, docker load), or make its registry "
    "reachable, and try again, or deploy again with another image"
)


def begin(
    gateway: Gateway, revision: Revision, notebook: str, app: App | None, before: Deployment | None
) -> None:
    """Start the rollout of a new revision; the deploy `before` that is under way is cancelled."""
    if before is not None:
        before.cancel(f"revision {revision.number} took its place")
    with gateway.store.transaction():
        gateway.store.put(revision)
        _step(gateway, revision, "accepted", f"revision {revision.number}")
    deployment = Deployment(revision, notebook, dict(app.scaling) if app else {})
    gateway.deployments[revision.owner, revision.app] = deployment
    fleet = gateway.fleet(revision.owner, revision.app)
    deployment.task = asyncio.ensure_future(_roll_out(gateway, fleet, deployment, before))
    # Not a `finally` of the task: one that is cancelled before it began runs none of its code.
    deployment.task.add_done_callback(functools.partial(_finish, gateway, fleet, deployment))


def context_of(gateway: Gateway, manifest: dict[str, Any]) -> Path | None:
    """Return the archive of the image's build context, or of `app_files`, if there is one."""
    digest = manifest.get("context")
    if digest is None:
        return None
    if not isinstance(digest, str) or re.fullmatch(r"[0-9a-f]{64}", digest) is None:
        raise OptionError("the manifest's context is no SHA-256")
    return paths.blob(gateway.state, digest)


async def _roll_out(
    gateway: Gateway, fleet: Fleet, deployment: Deployment, before: Deployment | None
) -> None:
    """Build, prove, switch."""
    revision = deployment.revision
    if before is not None:
        await asyncio.wait([before.task])
    began = clock.now()
    revision.environment = await _environment(gateway, revision)
    built = clock.now() - began
    retire = functools.partial(_retire, gateway, revision)
    await make_room(fleet, revision, retire)
    if revision.direct:
        await free_port(fleet, revision, retire)
    await free_gpus(fleet, revision, gateway.gpus, retire)
    _step(gateway, revision, "starting", "runner")
    runner = deployment.runner = gateway.lifecycle.start(fleet, revision, proving=True)
    runner.on_note = functools.partial(_step, gateway, revision, "starting")
    assert runner.birth is not None
    runner.birth.built = built
    await start_news.ready(gateway, revision, runner)
    given = (revision.options.get("metadata") or {}).get("openapi")
    revision.openapi = given or runner.openapi or await openapi_of(runner)
    for note in (*runner.notes, *about(revision, runner)):
        _step(gateway, revision, "note", note)
    _switch(gateway, fleet, deployment)
    runner.proving = False


def _retire(gateway: Gateway, revision: Revision, runner: Runner, cause: str) -> None:
    """Let a runner give way to the revision once its requests are answered."""
    if runner.has_requests:
        _step(gateway, revision, "waiting", f"for the requests of runner {runner.row.id}")
    gateway.lifecycle.retire(runner, cause)


async def _environment(gateway: Gateway, revision: Revision) -> dict[str, str]:
    """Return what the revision's runners start in: of a copy what is there, else built now."""
    step = functools.partial(_step, gateway, revision, "building")
    step("environment")
    backend = await gateway.targets.load(revision.target)
    if not revision.environment:
        return await _built(gateway, backend, revision, step)
    registries = functools.partial(credentials.registries, gateway, revision)
    if await backend.restore(revision.environment, registries):
        return revision.environment
    built = await _built_again(gateway, backend, revision, step)
    if not await backend.restore(built, registries):
        raise BuildError(f"the Python of {revision.origin} is gone; run its cell again")
    return built


async def _built_again(
    gateway: Gateway, backend: Backend, revision: Revision, step: Callable[[str], None]
) -> dict[str, str]:
    """Return what a copy's runners start in when that was gone; a failure says what helps."""
    name = revision.environment.get("image")
    gone = f"the {'environment' if name is None else 'image'} of {revision.origin} is gone"
    pulled = name is not None and not is_ours(name)
    step(f"{gone}: it is {'pulled' if pulled else 'built'} again")
    try:
        return await _built(gateway, backend, revision, step)
    except RegistryError as error:
        raise RegistryError(f"{gone} and {error}; {BASE_GONE}", error.log, error.host) from None
    except BuildError as error:
        raise BuildError(f"{gone} and cannot be built again: {error}", error.log) from None


async def _built(
    gateway: Gateway, backend: Backend, revision: Revision, step: Callable[[str], None]
) -> dict[str, str]:
    news = BuildNews(gateway, revision, step)
    with contextlib.closing(news):
        return await backend.build(_order(gateway, revision), news)


def _order(gateway: Gateway, revision: Revision) -> BuildOrder:
    payload = paths.blob(gateway.state, revision.payload)
    context = context_of(gateway, revision.manifest)
    given = credentials.of(gateway, revision)
    bases = json.loads(revision.environment.get("bases", "{}"))
    return BuildOrder(revision.manifest, revision.options, payload, context, given, bases)


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
            gateway.lifecycle.retire(other, f"revision {revision.number} took over")


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
        log = without_repeats(log_tail(gateway, runner.row, LOG_LINES))
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
