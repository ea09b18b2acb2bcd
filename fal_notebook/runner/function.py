"""The user's function inside a runner: loaded from its payload, set up once, called many times."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import pickle
import sys
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fal_notebook.runner.envelope import unpack
from fal_notebook.runner.schema import Signature, openapi, read_signature

_END = object()


class Function:
    """A loaded function with its signature.

    Sync code runs in a pool of `max_multiplexing` threads, setup included, so that with one
    thread everything a library ties to a thread stays valid. Async code runs on the loop.
    """

    def __init__(self, payload: str, max_multiplexing: int) -> None:
        self.manifest, pickled = unpack(Path(payload).read_bytes())
        loaded = pickle.loads(pickled)
        for name, module in loaded["modules"].items():
            sys.modules.setdefault(name, module)
        self._function: Callable[..., Any] = loaded["function"]
        self._setup: Callable[..., Any] | None = loaded["setup"]
        self._hints: dict[str, Any] = loaded["hints"]
        self._threads = ThreadPoolExecutor(max_multiplexing, thread_name_prefix="fal-request")
        self._first: tuple[Any, ...] = ()
        self.streams = inspect.isgeneratorfunction(self._function) or inspect.isasyncgenfunction(
            self._function
        )
        self.signature: Signature

    async def setup(self) -> None:
        """Run setup_function, then read the signature; its result becomes the first argument."""
        if self._setup is not None:
            result = await self._run(self._setup)
            self._first = () if result is None else (result,)
        self.signature = read_signature(self._function, self._hints, skip_first=bool(self._first))

    def openapi(self) -> dict[str, Any]:
        """Return the app's OpenAPI document."""
        manifest = self.manifest
        return openapi(manifest["name"], manifest.get("doc"), self.signature, self.streams)

    async def call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the function and return its result (of a generator function: use `stream`)."""
        return await self._run(self._function, *self._first, *args, **kwargs)

    async def stream(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> AsyncGenerator[Any, None]:
        """Call the generator function and yield its values as they come."""
        values = self._function(*self._first, *args, **kwargs)
        if inspect.isasyncgen(values):
            async for value in values:
                yield value
            return
        try:
            while (value := await self._in_thread(next, values, _END)) is not _END:
                yield value
        finally:
            await self._in_thread(values.close)

    async def _run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if inspect.iscoroutinefunction(inspect.unwrap(function)):
            return await function(*args, **kwargs)
        result = await self._in_thread(function, *args, **kwargs)
        return await result if inspect.isawaitable(result) else result

    async def _in_thread(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        context = contextvars.copy_context()
        call = functools.partial(context.run, function, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)
