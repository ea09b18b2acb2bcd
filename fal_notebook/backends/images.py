"""Makes the images of revisions: pulled, built, checked; containers of them are left to others."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import shutil
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fal_notebook import base_images, dockerfile, heredocs, image, platforms
from fal_notebook.backends import buildkit, fit, image_python, local_packages, logins
from fal_notebook.backends.base import BuildOrder, Placement, Progress
from fal_notebook.backends.bundle import write_compiled
from fal_notebook.backends.containers import RUNNER, STATE
from fal_notebook.backends.engine import Engine, host
from fal_notebook.backends.limits import own_user
from fal_notebook.backends.pulls import Call, Pulls, breakable
from fal_notebook.backends.requirement_layers import layers_of
from fal_notebook.backends.runner_libraries import BRING, ensure_runner_libraries, refuse
from fal_notebook.backends.stored_images import mark_of
from fal_notebook.exceptions import BuildError, RegistryError
from fal_notebook.image import Recipe, UserImage, is_ours
from fal_notebook.registries import hosts_of

IMAGE = "the image brings"

Make = Callable[[], Awaitable[None]]
Logins = Mapping[str, logins.Login]


class Images:
    """Makes what a container is created from; equal orders are built once.

    Parameters
    ----------
    state : Path
        The gateway's state folder.
    engine : Engine
    call : callable
        Runs a function in a thread and gives its result.
    labels : mapping
        Of the containers in which images are looked at.
    """

    def __init__(self, state: Path, engine: Engine, call: Call, labels: Mapping[str, str]) -> None:
        self._state = state
        self._engine = engine
        self._call = call
        self._labels = labels
        self._pulls = Pulls(engine, call)
        self._building: dict[str, asyncio.Lock] = {}
        # What is installed in images, by their ids.
        self._looked_at: dict[str, dict[str, str]] = {}
        # A build that was killed with its gateway may have left secrets there.
        self._work = state / "builds"
        shutil.rmtree(self._work, ignore_errors=True)

    async def build(self, order: BuildOrder, progress: Progress) -> dict[str, str]:
        """Build what is not there yet of an environment, and the image of the payload.

        Raises
        ------
        BuildError
            With the failing step and its last lines; no image of that name is there then.
        """
        (self._state / "docker").touch()  # the next gateway looks for what is left
        bases = await self._bases(order, progress)
        held = {"bases": json.dumps(bases)}
        if order.manifest.get("kind") == "image":
            return {**await self._untouched(order, bases, progress), **held}
        environment, looked_at, user = await self._environment(order, bases, progress)
        shared = await self._served(environment, looked_at, order, progress)
        files = order.context if order.options.get("app_files") else None
        packed = image.Tree(files, files.name) if files is not None else None
        own = image.app(shared.tag, image.Tree(order.payload, order.payload.name), packed)
        anew = bool(order.options.get("force"))  # the name says nothing of an environment made anew
        await self._ensure(own.tag, self._built(own, progress, anew, {}), anew)
        # An image outlives this version of the package, so it says itself where things are.
        places = {"runner": image.RUNNER, "libraries": image.LIBRARIES}
        texts = {"dockerfiles": json.dumps([r.dockerfile for r in (environment, shared, own)])}
        prefix = _prefix(order.options.get("image"))
        return {"image": own.tag, **places, **user, **prefix, **texts, **held}

    async def restore(self, name: str, placement: Placement) -> None:
        """Fetch an image again, by its digest, that was removed from the engine."""
        if "@" in name and await self._call(self._engine.image_id, name) is None:
            placement.on_pull()
            await self._pulls.fetch(name, placement.registries(), lambda line: None)

    async def kept(self, name: str, registries: Callable[[], logins.Given]) -> bool:
        """Say whether an image is here, or can be fetched; ours is marked for this state folder."""
        if is_ours(name):
            return await self._mark(name)
        if "@" in name and await self._call(self._engine.image_id, name) is None:
            with contextlib.suppress(RegistryError):  # it may be built from what it was made of
                await self._pulls.fetch(name, registries(), lambda line: None)
        return await self._call(self._engine.image_id, name) is not None

    async def _bases(self, order: BuildOrder, progress: Progress) -> dict[str, str]:
        """Return the images that an order is made from, by their names; all are here then.

        They are those of then where a revision is built again, else what the names mean now.
        """
        registries = order.credentials.get("registries", {})
        tell, anew = _in_loop(progress), bool(order.options.get("force"))
        if order.bases:
            again = functools.partial(self._pulls.again, given=registries, progress=tell)
            return {name: await again(name, was) for name, was in order.bases.items()}
        pinned = functools.partial(self._pulls.pinned, given=registries, progress=tell, anew=anew)
        brought = order.options.get("image")
        names = base_images.bases(brought, order.manifest["python"])
        try:
            return {name: await pinned(name) for name in names}
        except RegistryError as error:
            if brought is not None:
                raise
            said = f"{error}; the setting docker_base may name another image"
            raise RegistryError(said, error.log, error.host) from None

    async def _untouched(
        self, order: BuildOrder, bases: Mapping[str, str], progress: Progress
    ) -> dict[str, str]:
        given = order.options["image"]
        name = await self._users(order, bases, progress)
        commands = given if isinstance(given, dict) else {}
        told = {n: json.dumps(commands[n]) for n in ("entrypoint", "cmd") if commands.get(n)}
        return {"image": name, "untouched": "yes", **told}

    async def _environment(
        self, order: BuildOrder, bases: Mapping[str, str], progress: Progress
    ) -> tuple[Recipe, str, dict[str, str]]:
        """Return the image of an environment, which is there then; what to look at; who runs there.

        It holds what its base does unless something is installed. In an image of the user's own
        runs whom it names.
        """
        manifest, anew = order.manifest, bool(order.options.get("force"))
        brought = order.options.get("image") is not None
        wanted = layers_of(order.options, manifest)
        refuse(fit.pinned(wanted), manifest["python"])
        base = await (self._users(order, bases, progress) if brought else self._default(bases))
        found = await self._call(self._engine.image, base) or {}
        base_user = found.get("Config", {}).get("User", "")
        ours = not brought and not base_user
        if brought:  # before anything is installed there
            refuse(await self._versions(base, manifest["python"]), manifest["python"], IMAGE)
        environment = image.environment(
            base,
            found.get("Id", ""),
            await local_packages.layers(self._state, wanted, manifest["interpreter"], progress),
            for_anyone=ours,
            workdir="" if brought else image.WORKDIR,
        )
        await self._ensure(environment.tag, self._built(environment, progress, anew, {}), anew)
        user = {"user": await self._own_user()} if ours else {}
        return environment, environment.tag if wanted else base, user

    async def _served(
        self, environment: Recipe, looked_at: str, order: BuildOrder, progress: Progress
    ) -> Recipe:
        """Return the image of an environment with the runner, which is there then."""
        manifest, anew = order.manifest, bool(order.options.get("force"))
        interpreter, minor = manifest["interpreter"], manifest["python"]
        found = await self._versions(looked_at, minor)
        brings = BRING if order.options.get("requirements") else IMAGE
        libraries = await ensure_runner_libraries(
            self._state, interpreter, minor, progress, found, brings
        )
        bundle = await asyncio.to_thread(write_compiled, self._state, interpreter, minor)
        key = f"{libraries.parent.name}/{libraries.name}"
        base_id = await self._call(self._engine.image_id, environment.tag) or ""
        parts = image.Tree(libraries, key), image.Tree(bundle, bundle.name)
        recipe = image.served(environment.tag, base_id, *parts)
        await self._ensure(recipe.tag, self._built(recipe, progress, anew, {}), anew)
        return recipe

    async def _default(self, bases: Mapping[str, str]) -> str:
        """Return the one base by the name that people know, if that still means it."""
        ((name, held),) = bases.items()
        meant, wanted = [await self._call(self._engine.image_id, each) for each in (name, held)]
        return name if meant == wanted else held

    async def _users(self, order: BuildOrder, bases: Mapping[str, str], progress: Progress) -> str:
        """Return the name of the image that a revision brings, built or pulled."""
        given, anew = order.options["image"], bool(order.options.get("force"))
        if isinstance(given, str):
            return bases[given]
        text, arguments = given["dockerfile_str"], given.get("build_args") or {}
        if bases and dockerfile.is_reference(text):  # there is nothing to build
            (held,) = bases.values()
            return held
        platforms.refuse_other(text, arguments, await self._made_for(bases))
        own = UserImage(text, order.context, arguments, bases)
        known = await logins.logins(hosts_of(bases), order.credentials.get("registries", {}))
        secrets = order.credentials.get("secrets", {})
        if secrets or dockerfile.needs_buildkit(own.rewritten[0]):
            own = replace(own, bases={name: await self._named(bases[name]) for name in bases})
            make = self._built_by_command(own, secrets, known, progress, anew)
        else:
            make = self._built(own, progress, anew, known)
        await self._ensure(own.tag, make, anew)
        return own.tag

    async def _made_for(self, bases: Mapping[str, str]) -> dict[str, str]:
        """Return the architectures of base images by their names in a Dockerfile.

        Of those that are here only: what a registry has, a builder may fetch for another one.
        """
        local = {name: held for name, held in bases.items() if "@" not in held}
        found = {
            name: await self._call(self._engine.image, held) or {} for name, held in local.items()
        }
        return {name: about.get("Architecture", "") for name, about in found.items()}

    async def _named(self, base: str) -> str:
        """Return a name of a base image for BuildKit, which knows none by its id."""
        if "@" in base:
            return base
        name = image.base_name(base)
        await self._call(self._engine.name_image, base, name)
        await self._mark(name)
        return name

    async def _versions(self, name: str, minor: str) -> dict[str, str]:
        """Return what is installed in an image; refuse one in which no runner can run."""
        found = await self._call(self._engine.image, name) or {}
        key = found.get("Id", name)
        if key not in self._looked_at:
            labels = {**self._labels, RUNNER: f"check-{os.urandom(4).hex()}"}
            command = image_python.COMMAND
            status, printed = await self._call(self._engine.tried, name, command, labels)
            own = await self._call(self._engine.architecture)
            made_for = found.get("Architecture") or own
            self._looked_at[key] = image_python.versions(status, printed, minor, made_for, own)
        return self._looked_at[key]

    async def _own_user(self) -> str:
        rootless = await self._call(self._engine.is_rootless)
        return own_user(os.getuid(), os.getgid(), rootless)

    async def _ensure(self, tag: str, make: Make, anew: bool = False) -> None:
        """Have an image made that is not there."""
        async with self._building.setdefault(tag, asyncio.Lock()):
            if anew or not await self._mark(tag):
                await make()
                await self._mark(tag)

    async def _mark(self, tag: str) -> bool:
        """Keep an image from those who share the engine; say whether it is there."""
        mark = mark_of(self._labels[STATE], tag)
        return bool(await self._call(self._engine.name_image, tag, mark))

    def _built(
        self, wanted: Recipe | UserImage, progress: Progress, anew: bool, known: Logins
    ) -> Make:
        """Return what builds an image; when it is cancelled the build is broken off."""

        async def make() -> None:
            build, tell = self._engine.build, _in_loop(progress)
            run = functools.partial(build, wanted, tell, anew=anew, logins=known)
            await breakable(self._call, lambda streams: run(streams=streams))

        return make

    def _built_by_command(
        self, own: UserImage, secrets: dict[str, str], known: Logins, progress: Progress, anew: bool
    ) -> Make:

        async def make() -> None:
            with logins.folder(known) if known else contextlib.nullcontext() as config:
                self._work.mkdir(mode=0o700, exist_ok=True)
                try:
                    await buildkit.build(own, host(), self._work, secrets, config, progress, anew)
                except BuildError as error:
                    left = heredocs.left(own.rewritten[0])
                    if "unknown instruction" not in str(error) or not left:
                        raise
                    raise BuildError(
                        f"{error}; this engine's builder knows no heredocs, and the text of the "
                        f"{left} has variables that the Dockerfile does not set: set them by ENV "
                        "or ARG, or quote its end (<<'EOF')"
                    ) from None

        return make


def _prefix(given: Any) -> dict[str, str]:
    """Return the program of the user's own that starts the runner, if the image names one."""
    entrypoint = given.get("entrypoint") if isinstance(given, dict) else None
    return {"entrypoint": json.dumps(entrypoint)} if entrypoint else {}


def _in_loop(progress: Progress) -> Progress:
    """Return a callable for other threads that has `progress` called on the event loop."""
    loop = asyncio.get_running_loop()

    def tell(line: str) -> None:
        loop.call_soon_threadsafe(progress, line)

    return tell
