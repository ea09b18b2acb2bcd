"""Images that come from registries: fetched with credentials, and held to their digest for ever."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from fal_notebook.backends.engine import Engine, Streams
from fal_notebook.backends.logins import Given, Login, login
from fal_notebook.exceptions import BuildError, RegistryError
from fal_notebook.registries import Reference

T = TypeVar("T")
Progress = Callable[[str], None]
Call = Callable[..., Awaitable[Any]]


class Pulls:
    """Fetches images of registries.

    Parameters
    ----------
    engine : Engine
        Where they go.
    call : callable
        Runs a function in a thread and gives its result.
    """

    def __init__(self, engine: Engine, call: Call) -> None:
        self._engine = engine
        self._call = call

    async def pinned(self, name: str, given: Given, progress: Progress, anew: bool) -> str:
        """Return by which name an image will be the same for ever; fetch it if need be.

        That is ``NAME@sha256:…``, or the id of an image that no registry gave.

        Parameters
        ----------
        given : mapping
            Credentials by registry, before those of `docker login`.
        anew : bool
            Whether the registry is asked what the tag means now, also when the image is here.
            One that cannot be reached, or lacks it, leaves what is here.

        Raises
        ------
        RegistryError, OptionError
            When it is not here and cannot be fetched, when the registry refuses, or when what
            gives the password fails.
        """
        here = str(await self._call(self._here, name))
        if here and (not anew or "@" not in here or "@" in name):
            return here
        known = await login(Reference.of(name).host, given)
        try:
            digest = await self._pull(name, progress, known)
        except RegistryError as error:
            if not here or error.host:
                raise
            progress(f"{error}; the one that is here is used")
            return here
        return (
            f"{_without_tag(name)}@{digest}" if digest else str(await self._call(self._here, name))
        )

    async def again(self, name: str, was: str, given: Given, progress: Progress) -> str:
        """Return what `pinned` returned before of a name, once that image is here again.

        Raises
        ------
        RegistryError
            When it is not to be had; what the name means now is another image.
        """
        if await self._call(self._engine.image_id, was) is not None:
            return was
        lost = f"its base {name} cannot be had any more:"
        if "@" not in was:
            raise RegistryError(f"{lost} {was} came from no registry and this engine lost it")
        try:
            await self.fetch(was, given, progress)
        except RegistryError as error:
            raise RegistryError(f"{lost} {error}", error.log, error.host) from None
        return was

    async def fetch(self, name: str, given: Given, progress: Progress) -> str:
        """Pull an image with credentials that are asked for now; return its digest."""
        return await self._pull(name, progress, await login(Reference.of(name).host, given))

    async def _pull(self, name: str, progress: Progress, known: Login | None) -> str:
        digest: str = await breakable(self._call, self._engine.pull, name, progress, known)
        return digest

    def _here(self, name: str) -> str:
        """Return the name for ever of an image that the engine has, empty when it has none."""
        found = self._engine.image(name)
        if found is None:
            return ""
        wanted = Reference.of(name)
        digests = [text for text in found["RepoDigests"] or () if wanted.same_repository(text)]
        if wanted.digest:
            return name
        return str(digests[0] if digests else found["Id"])


async def breakable(call: Call, function: Callable[..., T], *arguments: Any) -> T:
    """Run a call that reads a stream, in a thread; when this is cancelled the stream is closed.

    `function` takes the `Streams` to read within as its last argument.
    """
    streams = Streams()
    running: asyncio.Future[T] = asyncio.ensure_future(call(function, *arguments, streams))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        streams.close()
        with contextlib.suppress(BuildError):
            await running
        raise


def _without_tag(name: str) -> str:
    tag = Reference.of(name).tag
    return name.partition("@")[0].removesuffix(f":{tag}" if tag else "")
