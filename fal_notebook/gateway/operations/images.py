"""The images of apps: shown, sent to a registry, removed when no app needs them."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, cast

from pydantic import BaseModel, ConfigDict

from fal_notebook.backends.targets import DOCKER
from fal_notebook.exceptions import ConflictError, FalNotebookError, OptionError
from fal_notebook.gateway.gateway import Gateway
from fal_notebook.gateway.operations import credentials
from fal_notebook.gateway.operations.apps import find
from fal_notebook.gateway.operations.credentials import Credentials, RegistryLogin
from fal_notebook.gateway.store import Revision, RunnerRow
from fal_notebook.registries import Reference

if TYPE_CHECKING:
    from fal_notebook.backends.docker import DockerBackend


class PushRequest(BaseModel):
    """Where an image goes, and with which credentials; by default those that its app has."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    to: str
    login: RegistryLogin | None = None


async def about(gateway: Gateway, owner: str, name: str) -> dict[str, Any]:
    """Return the image of an app's active revision: id, digest, size, labels, layers, Dockerfiles.

    Raises
    ------
    NotFoundError, OptionError, BuildError
        When there is no such app, it has no image, or the engine lost it.
    """
    revision = _of_containers(gateway, owner, name)
    found = await (await _docker(gateway)).stored.about(revision.environment["image"])
    return {
        "app": f"{owner}/{name}",
        "revision": revision.number,
        **found,
        "dockerfiles": _dockerfiles(revision),
    }


async def push(gateway: Gateway, owner: str, name: str, request: PushRequest) -> AsyncIterator[str]:
    """Begin to send the image of an app's active revision to a registry.

    What is returned yields, as SSE, ``line`` for each step and in the end ``name`` and ``digest``,
    or ``error`` and ``detail``.

    Raises
    ------
    NotFoundError, OptionError
        When there is no such app, it has no image, or `to` is no name for one.
    """
    revision, to = _of_containers(gateway, owner, name), _target(request.to)
    given, source = credentials.registries(gateway, revision), ""
    if request.login is not None:
        login = Credentials(registries={Reference.of(to).host: request.login})
        given = credentials.with_values(gateway, revision.env, login)["registries"]
        source = "--password-from"
    backend = await _docker(gateway)
    news: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def tell(line: str) -> None:
        loop.call_soon_threadsafe(news.put_nowait, {"line": line})

    async def work() -> None:
        try:
            image = revision.environment["image"]
            digest = await backend.stored.push(image, to, given, tell, source)
            news.put_nowait({"name": to, "digest": digest})
        except FalNotebookError as error:
            said = gateway.redaction.current()(str(error))
            news.put_nowait({"error": type(error).__name__, "detail": said})

    return _told(news, work())


async def _told(news: asyncio.Queue[dict[str, Any]], work: Any) -> AsyncIterator[str]:
    """Yield news as SSE until the last; who goes away breaks the work off."""
    task = asyncio.ensure_future(work)
    try:
        while True:
            item = await news.get()
            yield f"data: {json.dumps(item)}\n\n"
            if "line" not in item:
                return
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def prune(gateway: Gateway, dry_run: bool) -> dict[str, Any]:
    """Remove images and containers of this state folder that none of its apps needs.

    An app needs the image of its active revision and those that its runners still use.

    Raises
    ------
    ConflictError
        While a deploy to containers is under way: its image is nobody's yet.
    """
    if not (gateway.state / DOCKER).exists():  # no engine is asked where none was used
        return {"images": [], "containers": [], "bytes": 0, "dry_run": dry_run}
    for deployment in gateway.deployments.values():
        if deployment.revision.target == DOCKER:
            raise ConflictError(
                f"{deployment.revision.app} is being deployed; prune when that has ended"
            )
    backend = await _docker(gateway)
    strays = await backend.remove_strays(dry_run)
    found = await backend.stored.clear(_needed(gateway), dry_run)
    written = sum(item.get("SizeRw") or 0 for item in strays)
    return {
        "images": found.told,
        "containers": [item["Names"][0].lstrip("/") for item in strays],
        "bytes": found.size + written,
        "dry_run": dry_run,
    }


def _needed(gateway: Gateway) -> set[str]:
    """Return the images of revisions that serve, or of which a runner lives."""
    living = {row.revision for row in gateway.store.select(RunnerRow, "state != 'TERMINATED'")}
    revisions = gateway.store.select(Revision, "target = ?", DOCKER)
    needed = [r for r in revisions if r.state in ("ACTIVE", "PROVING") or r.id in living]
    return {r.environment["image"] for r in needed if "image" in r.environment}


def _of_containers(gateway: Gateway, owner: str, name: str) -> Revision:
    revision = find(gateway, owner, name)[1]
    if "image" not in revision.environment:
        raise OptionError(
            f"{owner}/{name} runs as a process of this machine and has no image; deploy it with "
            "target=docker"
        )
    return revision


def _dockerfiles(revision: Revision) -> list[str]:
    given = revision.options.get("image")
    own = [given["dockerfile_str"]] if isinstance(given, dict) else []
    return [*own, *json.loads(revision.environment.get("dockerfiles", "[]"))]


def _target(to: str) -> str:
    found = Reference.of(to)
    if found.digest:
        raise OptionError(f"{to} names a digest, which the registry gives; write [HOST/]NAME[:TAG]")
    return to if found.tag else f"{to}:latest"


async def _docker(gateway: Gateway) -> DockerBackend:
    return cast("DockerBackend", await gateway.targets.load(DOCKER))
