"""The handle: an app as a Python object, bound in the notebook under the function's name."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import inspect
import os
import re
import reprlib
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextvars import ContextVar
from typing import Any, NoReturn, TypeVar

from fal_notebook import calls, sync
from fal_notebook.client import Client
from fal_notebook.envs import MAIN
from fal_notebook.exceptions import FalNotebookError, NotFoundError
from fal_notebook.queued import Queued
from fal_notebook.submitted import Submitted
from fal_notebook.submitting import QueueOptions, Submitter

T = TypeVar("T")

_ID = re.compile("[0-9a-f]{32}")  # of a request
# The handles whose functions run here, by `local`.
_AT_HOME: ContextVar[frozenset[int]] = ContextVar("_AT_HOME", default=frozenset())


def shared_client() -> Client:
    """Return the client of this process; it lives on the background loop of `sync`."""
    return _client_of(os.getpid())


@functools.cache
def _client_of(pid: int) -> Client:
    return Client()


class Handle(Queued):
    """A deployed app.

    Calling it runs the function remotely and returns its Python value; an exception comes back
    with the remote traceback as text. A call waits for the deploy that its cell started, or raises
    its error; questions such as `status` are answered after a failed deploy too, about what still
    runs. Inside another payload a handle travels as owner and name only, never with a token.

    Parameters
    ----------
    owner, name : str
        The app.
    original : callable, optional
        The function as the cell defined it, reached as ``.local``.
    deployed : Future, optional
        Ends when the deploy of its cell does; raises its error.
    setup_function : callable, optional
        What `local` runs once, before the first call.
    """

    def __init__(
        self,
        owner: str,
        name: str,
        original: Callable[..., Any] | None = None,
        deployed: Future[Any] | None = None,
        setup_function: Callable[[], Any] | None = None,
    ) -> None:
        self.owner = owner
        self.name = name
        self._original = original
        self._deployed = deployed
        self._setup_function = setup_function
        self._first: tuple[Any, ...] | None = None  # what setup_function made, for `local`
        if original is not None:  # so that help() and inspect say what it takes
            self.__doc__ = original.__doc__
            self.__wrapped__ = original

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Run the function remotely; of a generator function, return an iterator."""
        __tracebackhide__ = True
        if id(self) in _AT_HOME.get():
            return self.original(*args, **kwargs)
        result = sync.wait(self._call(calls.dump(self.name, args, kwargs)))
        return sync.iterate(result.values) if isinstance(result, calls.Stream) else result

    async def aio(self, /, *args: Any, **kwargs: Any) -> Any:
        """Run the function remotely: ``await handle.aio(…)``; a generator gives ``async for``."""
        __tracebackhide__ = True
        call = self._call(calls.dump(self.name, args, kwargs))
        result = await sync.there(call)
        return sync.aiterate(result.values) if isinstance(result, calls.Stream) else result

    def with_options(self, **options: Any) -> Submitter:
        """Return what submits and maps with options of the queue, see `Queued.with_options`."""
        queue_options = QueueOptions(**options)
        return Submitter(shared_client, self.ready, self.owner, self.name, queue_options)

    def request(self, request_id: str) -> Submitted:
        """Return a request that was submitted before, by this kernel or another program.

        Raises
        ------
        FalNotebookError
            When that is no id.
        """
        if not isinstance(request_id, str) or not _ID.fullmatch(request_id):
            wrong = reprlib.repr(request_id)
            raise FalNotebookError(f"{wrong} is no id of a request: that is 32 hexadecimal digits")
        return Submitted(shared_client, self.owner, self.name, request_id)

    def local(self, /, *args: Any, **kwargs: Any) -> Any:
        """Run the function here, as the cell defined it, after its setup_function.

        Raises
        ------
        FalNotebookError
            When this handle did not come from a cell of this kernel.
        """
        __tracebackhide__ = True
        if inspect.iscoroutinefunction(self.original):
            return self._local_async(args, kwargs)
        if inspect.iscoroutinefunction(self._setup_function):
            raise FalNotebookError(
                f"{self.name} has an async setup_function, which can be awaited here for an async "
                "function only; call the handle's .original with what it returns"
            )
        if self._first is None:
            self._keep(self._setup_function() if self._setup_function is not None else None)
        with self._at_home():
            return self.original(*(self._first or ()), *args, **kwargs)

    async def _local_async(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._first is None:
            made = self._setup_function() if self._setup_function is not None else None
            self._keep(await made if inspect.isawaitable(made) else made)
        with self._at_home():
            return await self.original(*(self._first or ()), *args, **kwargs)

    @contextlib.contextmanager
    def _at_home(self) -> Iterator[None]:
        """Have the function's calls of itself be calls of itself, as they are in a runner."""
        token = _AT_HOME.set(_AT_HOME.get() | {id(self)})
        try:
            yield
        finally:
            _AT_HOME.reset(token)

    def _keep(self, made: Any) -> None:
        self._first = () if made is None else (made,)

    @property
    def original(self) -> Callable[..., Any]:
        """The function as the cell defined it; raises as `local` does."""
        if self._original is None:
            raise FalNotebookError(f"{self.name} was not defined in this kernel; run its cell")
        return self._original

    @property
    def deployed(self) -> Future[Any] | None:
        """What ends when the deploy of this handle's cell does."""
        return self._deployed

    @property
    def url(self) -> str:
        """Where the app answers: ``POST`` a JSON body."""
        return f"{sync.wait(shared_client().url())}/run/{self.owner}/{self.name}"

    def status(self) -> dict[str, Any]:
        """Return URL, revision, options in force and load; also while it is being deployed."""
        return sync.wait(self._answer_now(shared_client().status))

    def runners(self) -> list[dict[str, Any]]:
        """Return the runners that have not ended."""
        return sync.wait(self._answer_now(shared_client().runners))

    def timeline(self) -> list[dict[str, Any]]:
        """Return samples of the load, oldest first: at (unix s), runners, in_flight, queued."""
        return self._ask(shared_client().timeline)

    def starts(self) -> dict[str, Any]:
        """Return the last ``starts`` of runners and the ``median`` of each part, in seconds.

        Parts are ``queued``, ``build``, ``start``, ``setup`` and ``first_byte``.
        """
        return self._ask(shared_client().starts)

    def cost(self, days: int = 7) -> dict[str, Any]:
        """Return what was ``billed`` of today and so many days before: seconds per state, money."""
        return self._ask(functools.partial(shared_client().cost, days=days))

    def openapi(self) -> dict[str, Any]:
        """Return the app's OpenAPI document."""
        return self._ask(shared_client().openapi)

    def scale(self, **options: Any) -> dict[str, Any]:
        """Change scaling options such as ``keep_alive=60`` at once; return the status."""
        return self._ask(functools.partial(shared_client().scale, values=options))

    def revisions(self) -> list[dict[str, Any]]:
        """Return the revisions, the newest first: number, state, message, origin, created_at…"""
        return self._ask(shared_client().revisions)

    def diff(self, revision: int | None = None) -> dict[str, Any]:
        """Return what changed since a revision, by default the last that served before.

        ``source``, ``options``, ``requirements``, ``captured`` and ``schema`` are unified diffs.
        """
        return self._ask(functools.partial(shared_client().diff, revision=revision))

    def rollback(self, revision: int | None = None) -> Handle:
        """Bring an earlier revision back, by default the last that served before; wait for it.

        A new revision has its code and options, and the scaling that is in force now.

        Raises
        ------
        DeployError
            When it does not come up; what ran still runs.
        """
        from fal_notebook import rollouts  # which makes handles

        rollouts.rollback(self.owner, self.name, revision).handle.wait()
        return self

    def promote(self, source: str, to: str = MAIN) -> Handle:
        """Copy what serves this app in the environment `source` to another, without a build.

        Returns
        -------
        Handle
            Of the app there, which is up.
        """
        from fal_notebook import rollouts

        return rollouts.promote(self.owner, self.name, source, to).handle.wait()

    def logs(
        self,
        follow: bool = False,
        runner: str = "",
        request: str = "",
        tail: int = 200,
        level: str = "",
    ) -> list[dict[str, Any]] | Iterator[dict[str, Any]]:
        """Return the last log lines, or an iterator that goes on with new ones.

        At most the last `tail` of those that are kept; of one runner or request if it is named,
        the request by its id or a unique beginning or end of it, and of at least a level such as
        ``"warning"``.
        """
        request = self._request_id(request)
        filters: dict[str, Any] = {
            "runner": runner,
            "request": request,
            "tail": tail,
            "level": level,
        }
        if not follow:
            return self._ask(functools.partial(shared_client().logs, **filters))
        self.status()  # says at once when there is no such app
        return sync.iterate(shared_client().follow_logs(self.owner, self.name, **filters))

    def stats(
        self, seconds: float = 3600.0, step: float | None = None, endpoint: str = ""
    ) -> dict[str, Any]:
        """Return requests, errors and latencies of the last so many seconds, at most 30 days.

        Of the app, or of one endpoint: ``requests``, ``errors`` by class of status, and quantiles
        ``p50``, ``p95`` and ``p99`` (s). The same for each of its ``endpoints``, and over time as
        ``points`` of ``step`` seconds: as fine as they were kept, or the next coarser to `step`.
        """
        query = {"since": time.time() - seconds, "endpoint": endpoint}
        query |= {} if step is None else {"step": step}
        return self._ask(functools.partial(shared_client().history, query=query))

    def errors(self) -> list[dict[str, Any]]:
        """Return the errors of requests by type and place, with counts, the last seen first."""
        return self._ask(shared_client().errors)

    def error(self, request_id: str) -> dict[str, Any]:
        """Return the errors whose sample is this request, with its `input` and `traceback`.

        `request_id` may be a unique beginning or end of it.
        """
        return self._ask(functools.partial(shared_client().error, request_id=request_id))

    def delete(self) -> None:
        """Delete the app and cancel a deploy of it that is under way; its runners drain."""
        sync.wait(shared_client().delete(self.owner, self.name))

    def cancel_deploy(self) -> None:
        """Cancel the deploy that is under way; what ran before stays."""
        sync.wait(shared_client().cancel_deploy(self.owner, self.name))

    def wait(self) -> Handle:
        """Wait for the deploy of this handle's cell; raise its error."""
        if self._deployed is not None:
            self._deployed.result()
        return self

    def __getitem__(self, path: str) -> Endpoint:
        """Return what calls one path of the app: ``app["/generate"](prompt="…")``."""
        return Endpoint(self, whole_path(path))

    def __iter__(self) -> NoReturn:
        raise TypeError(f"the app {self.name} is no sequence; app['/path'] is one of its paths")

    def __reduce__(self) -> tuple[type[Handle], tuple[str, str]]:
        """Travel as owner and name."""
        return Handle, (self.owner, self.name)

    def __repr__(self) -> str:
        return f"<fal app {self.owner}/{self.name}{self._state()}>"

    def _state(self) -> str:
        """Say what is odd about the deploy of its cell."""
        if self._deployed is not None and not self._deployed.done():
            return " (deploying)"
        error = self._deployed.exception() if self._deployed is not None else None
        if error is None:
            return ""
        return " (redeploy failed)" if getattr(error, "still_runs", False) else " (not deployed)"

    def _request_id(self, part: str) -> str:
        """Return the whole id; that of no request is refused, or it would be followed for ever."""
        if not part:
            return part
        return self._ask(functools.partial(shared_client().find_request, part=part))

    # --- how it talks to the gateway ---------------------------------------------------------
    def _ask(self, method: Callable[[str, str], Coroutine[Any, Any, T]]) -> T:
        return sync.wait(self._answer(method))

    async def _answer(self, method: Callable[[str, str], Coroutine[Any, Any, T]]) -> T:
        """Ask when the deploy has ended; where nothing runs, its error says why."""
        failed = None
        try:
            await self.ready()
        except FalNotebookError as error:
            failed = error
        try:
            return await method(self.owner, self.name)
        except NotFoundError as error:
            raise failed or error from None

    async def _answer_now(self, method: Callable[[str, str], Coroutine[Any, Any, T]]) -> T:
        """Ask at once; where there is nothing yet, the deploy is about to end or was refused."""
        with contextlib.suppress(NotFoundError):
            return await method(self.owner, self.name)
        return await self._answer(method)

    async def ready(self) -> None:
        """Wait on the background loop for the deploy of this handle's cell; raise its error."""
        if self._deployed is not None:
            # Shielded: an interrupted call must not end the deploy's follower.
            await asyncio.shield(asyncio.wrap_future(self._deployed))

    async def _call(self, body: bytes, path: str = "/") -> Any:
        await self.ready()
        return await calls.call(shared_client(), self.owner, self.name, body, path)


def whole_path(path: str) -> str:
    """Return a path with the slash at its beginning."""
    return path if path.startswith("/") else f"/{path}"


class Endpoint(Queued):
    """One path of an app, called as the method that it is."""

    def __init__(self, handle: Handle, path: str) -> None:
        self._handle = handle
        self.path = path

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Call it and return its Python value; of a generator, an iterator."""
        __tracebackhide__ = True
        result = sync.wait(self._call(args, kwargs))
        return sync.iterate(result.values) if isinstance(result, calls.Stream) else result

    async def aio(self, /, *args: Any, **kwargs: Any) -> Any:
        """Call it without blocking: ``await app.generate.aio(…)``."""
        __tracebackhide__ = True
        result = await sync.there(self._call(args, kwargs))
        return sync.aiterate(result.values) if isinstance(result, calls.Stream) else result

    def stream(self, /, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """Yield its values as they come; of one that returns, the one value."""
        result = self(*args, **kwargs)
        if isinstance(result, Iterator):
            yield from result
        else:
            yield result

    def with_options(self, **options: Any) -> Submitter:
        """Return what submits and maps with options of the queue, see `Queued.with_options`."""
        return dataclasses.replace(self._handle.with_options(**options), path=self._queue_path)

    @property
    def _queue_path(self) -> str:
        return self.path if self.path != "/" else ""

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"{self._handle.url}{self.path}"

    def __repr__(self) -> str:
        return f"<endpoint {self.path} of {self._handle.owner}/{self._handle.name}>"

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Coroutine[Any, Any, Any]:
        body = calls.dump(self._handle.name, args, kwargs)
        return self._handle._call(body, self.path)
