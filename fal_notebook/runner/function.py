"""The user's function inside a runner: loaded from its payload, set up once, called many times."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import inspect
import pickle
import sys
import types
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fal_notebook.runner.envelope import packages_compared, unpack
from fal_notebook.runner.openapi import openapi
from fal_notebook.runner.schema import Signature, read_signature, streams
from fal_notebook.runner.tracebacks import Tracebacks

# Told of an error of a request: with its traceback, and what shows the request's input.
OnFailure = Callable[[BaseException, str, Callable[[], str]], None]

_END = object()


class Function:
    """A loaded function with its signature.

    Sync code runs in a pool of `max_multiplexing` threads, setup included, so that with one
    thread everything a library ties to a thread stays valid. Async code runs on the loop.
    """

    def __init__(self, payload: str, max_multiplexing: int) -> None:
        self.manifest, pickled = unpack(Path(payload).read_bytes())
        self.tracebacks = Tracebacks(self.manifest.get("sources", {}))
        with packages_compared(self.manifest):
            loaded = pickle.loads(pickled)
        for name, module in loaded["modules"].items():
            sys.modules.setdefault(name, module)
        self._function: Callable[..., Any] = loaded["function"]
        self._setup: Callable[..., Any] | None = loaded["setup"]
        self._hints: dict[str, Any] = loaded["hints"]
        self._threads = ThreadPoolExecutor(max_multiplexing, thread_name_prefix="fal-request")
        self._slots = asyncio.Semaphore(max_multiplexing)
        self._first: tuple[Any, ...] = ()
        self.is_async = _on_the_loop(self._function)
        self.on_failure: OnFailure = lambda error, text, given: None
        self.signature: Signature
        _fill_main(self._function)

    async def setup(self) -> None:
        """Run setup_function, then read the signature; its result becomes the first argument.

        Raises
        ------
        TypeError
            When there is a result and the function takes no argument for it.
        """
        if self._setup is not None:
            result = await self._run(self._setup, (), {}, lambda result: result)
            self._first = () if result is None else (result,)
        self.signature = read_signature(self._function, self._hints, skip_first=bool(self._first))

    def report(self, error: BaseException) -> str:
        """Write an error's traceback to the log and return it."""
        text = self.tracebacks.format(error)
        sys.stderr.write(text)
        return text

    def failed(self, error: BaseException, given: Callable[[], str], log: bool = True) -> str:
        """Report an error of a request; return its traceback."""
        text = self.report(error) if log else self.tracebacks.format(error)
        self.on_failure(error, text, given)
        return text

    def openapi(self) -> dict[str, Any]:
        """Return the app's OpenAPI document."""
        manifest = self.manifest
        return openapi(
            manifest["name"], manifest.get("doc"), self.signature, streams(self._function)
        )

    async def call(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], finish: Callable[[Any], Any]
    ) -> Any:
        """Call the function and return what `finish` makes of its result.

        `finish` runs where the function does, so that a large result does not hold up the loop.
        A generator is returned as it is, for `values_of`. Never more than `max_multiplexing` run
        at once, also when a caller has gone whose request is still at work.
        """
        args = (*self._first, *args)
        if self.signature.defaults:
            kwargs = self._with_defaults(args, kwargs)
        async with self._slots:
            return await self._run(self._function, args, kwargs, finish)

    def _with_defaults(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Fill in what a ``Field`` as default stands for."""
        given = inspect.signature(self._function).bind_partial(*args, **kwargs).arguments
        missing = {n: v for n, v in self.signature.defaults.items() if n not in given}
        return {**missing, **kwargs}

    async def _run(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        finish: Callable[[Any], Any],
    ) -> Any:
        if _on_the_loop(function):
            result = function(*args, **kwargs)
        else:
            result = await self._in_thread(
                functools.partial(_guarded, _finished, finish, function, args, kwargs)
            )
        return finish(await _awaited(result)) if inspect.isawaitable(result) else result

    async def _in_thread(self, call: Callable[[], Any]) -> Any:
        context = contextvars.copy_context()
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(self._threads, context.run, call)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            # A thread cannot be stopped: the slot is free when its work has ended.
            await asyncio.wait([work])
            work.exception()  # nobody is left to hear of it
            raise

    async def values_of(
        self, values: Generator[Any, Any, Any] | AsyncGenerator[Any, Any]
    ) -> AsyncGenerator[Any, None]:
        """Yield the values of a generator that the function returned as they come."""
        async with self._slots:
            if isinstance(values, AsyncGenerator):
                async with contextlib.aclosing(values):
                    async for value in values:
                        yield value
                return
            step = functools.partial(_guarded, next, values, _END)
            try:
                while (value := await self._in_thread(step)) is not _END:
                    yield value
            finally:
                await self._in_thread(values.close)


def is_stream(result: Any) -> bool:
    """Whether a result is a generator, to be sent value by value."""
    return inspect.isgenerator(result) or inspect.isasyncgen(result)


def _on_the_loop(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)


def _finished(
    finish: Callable[[Any], Any],
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    result = function(*args, **kwargs)
    return result if inspect.isawaitable(result) or is_stream(result) else finish(result)


def _guarded(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call, and turn what would end more than this call into an ordinary error."""
    try:
        return function(*args, **kwargs)
    except (SystemExit, StopIteration, KeyboardInterrupt, asyncio.CancelledError) as error:
        raise RuntimeError(f"the function raised {error!r}") from error


async def _awaited(awaitable: Any) -> Any:
    try:
        return await awaitable
    except (SystemExit, KeyboardInterrupt) as error:
        raise RuntimeError(f"the function raised {error!r}") from error


def _fill_main(function: Callable[..., Any]) -> None:
    """Give ``__main__`` the names of the notebook that were captured, for pickling by name."""
    inner = inspect.unwrap(function)
    if isinstance(inner, types.FunctionType) and inner.__module__ == "__main__":
        vars(sys.modules["__main__"]).update(
            {n: v for n, v in inner.__globals__.items() if not n.startswith("__")}
        )
        vars(sys.modules["__main__"]).setdefault(inner.__name__, inner)
