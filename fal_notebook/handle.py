"""The handle: an app as a Python object, bound in the notebook under the function's name."""

from __future__ import annotations

import asyncio
import functools
import pickle
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

from fal_notebook import sync
from fal_notebook.client import Client
from fal_notebook.exceptions import FalNotebookError
from fal_notebook.runner import frames

T = TypeVar("T")


@functools.cache
def shared_client() -> Client:
    """Return the client of this process; it lives on the background loop of `sync`."""
    return Client()


class Handle:
    """A deployed app.

    Calling it runs the function remotely and returns its Python value; an exception comes back
    with the remote traceback as text. A call waits for the deploy that its cell started. Inside
    another payload a handle travels as owner and name only, never with a token.

    Parameters
    ----------
    owner, name : str
        The app.
    original : callable, optional
        The function as the cell defined it, reached as ``.local``.
    deployed : Future, optional
        Ends when the deploy of its cell does; raises its error.
    """

    def __init__(
        self,
        owner: str,
        name: str,
        original: Callable[..., Any] | None = None,
        deployed: Future[Any] | None = None,
    ) -> None:
        self.owner = owner
        self.name = name
        self._original = original
        self._deployed = deployed

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the function remotely; of a generator function, return an iterator."""
        return sync.wait(self._call(args, kwargs))

    def aio(self, *args: Any, **kwargs: Any) -> asyncio.Future[Any]:
        """Run the function remotely: ``await handle.aio(…)``."""
        return asyncio.wrap_future(sync.submit(self._call(args, kwargs)))

    def local(self, *args: Any, **kwargs: Any) -> Any:
        """Run the function here, as the cell defined it.

        Raises
        ------
        FalNotebookError
            When this handle did not come from a cell of this kernel.
        """
        if self._original is None:
            raise FalNotebookError(f"{self.name} was not defined in this kernel; run its cell")
        return self._original(*args, **kwargs)

    @property
    def url(self) -> str:
        """Where the app answers: ``POST`` a JSON body."""
        return f"{sync.wait(shared_client().about())['url']}/run/{self.owner}/{self.name}"

    def status(self) -> dict[str, Any]:
        """Return URL, revision, options in force and load."""
        return self._ask(shared_client().status)

    def runners(self) -> list[dict[str, Any]]:
        """Return the runners that have not ended."""
        return self._ask(shared_client().runners)

    def timeline(self) -> list[dict[str, Any]]:
        """Return samples of the load, oldest first: at (unix s), runners, in_flight, queued."""
        return self._ask(shared_client().timeline)

    def openapi(self) -> dict[str, Any]:
        """Return the app's OpenAPI document."""
        return self._ask(shared_client().openapi)

    def scale(self, **options: Any) -> dict[str, Any]:
        """Change scaling options such as ``keep_alive=60`` at once; return the status."""
        return sync.wait(self._scale(options))

    def logs(
        self, follow: bool = False, runner: str = "", request: str = "", tail: int = 200
    ) -> list[dict[str, Any]] | Iterator[dict[str, Any]]:
        """Return the last log lines, or an iterator that goes on with new ones."""
        filters = {"runner": runner, "request": request, "tail": tail}
        self.wait()
        if follow:
            lines = shared_client().follow_logs(self.owner, self.name, **filters)
            return sync.iterate(lines)
        return sync.wait(shared_client().logs(self.owner, self.name, **filters))

    def delete(self) -> None:
        """Delete the app; its runners drain."""
        sync.wait(shared_client().delete(self.owner, self.name))

    def cancel_deploy(self) -> None:
        """Cancel the deploy that is under way; what ran before stays."""
        sync.wait(shared_client().cancel_deploy(self.owner, self.name))

    def wait(self) -> Handle:
        """Wait for the deploy of this handle's cell; raise its error."""
        if self._deployed is not None:
            self._deployed.result()
        return self

    def __reduce__(self) -> tuple[type[Handle], tuple[str, str]]:
        """Travel as owner and name."""
        return Handle, (self.owner, self.name)

    def __repr__(self) -> str:
        return f"<fal app {self.owner}/{self.name}>"

    # --- how a call travels ------------------------------------------------------------------
    def _ask(self, method: Callable[[str, str], Coroutine[Any, Any, T]]) -> T:
        self.wait()
        return sync.wait(method(self.owner, self.name))

    async def _scale(self, options: dict[str, Any]) -> dict[str, Any]:
        await self._ready()
        return await shared_client().scale(self.owner, self.name, options)

    async def _ready(self) -> None:
        if self._deployed is not None:
            await asyncio.wrap_future(self._deployed)

    async def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        await self._ready()
        received = self._frames(frames.dump_call(args, kwargs))
        kind, *content = await received.__anext__()
        if kind == "stream":
            return sync.iterate(_values(received))
        await received.aclose()
        if kind == "raise":
            raise frames.to_exception(*content)
        return pickle.loads(content[0])

    async def _frames(self, body: bytes) -> Any:
        client = shared_client()
        async with client.run(self.owner, self.name, "/", body, frames.CONTENT_TYPE) as response:
            async for frame in frames.read(response.aiter_raw()):
                yield frame


async def _values(received: AsyncIterator[tuple[Any, ...]]) -> AsyncIterator[Any]:
    """Yield the values of a generator; its error is raised where it happened."""
    async for kind, *content in received:
        if kind == "raise":
            raise frames.to_exception(*content)
        if kind == "item":
            yield pickle.loads(content[0])
