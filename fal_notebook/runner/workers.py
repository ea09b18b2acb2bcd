"""Where the user's code runs: sync code in threads, async code on the loop, within limits."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

from fal_notebook.runner import log_context
from fal_notebook.runner.escapes import awaited, contained

_END = object()
Finish = Callable[[Any], Any]


class Workers:
    """A pool of `max_multiplexing` threads and as many slots.

    Setup runs in the pool too, so that with one thread everything a library ties to a thread
    stays valid.

    Attributes
    ----------
    slot : asyncio.Semaphore
        Held by whatever is at work.
    waiting : set of asyncio.Task
        The calls that wait for a slot: nothing of theirs has begun.
    """

    def __init__(self, max_multiplexing: int) -> None:
        self._threads = ThreadPoolExecutor(max_multiplexing, thread_name_prefix="fal-request")
        self.slot = asyncio.Semaphore(max_multiplexing)
        self.waiting: set[asyncio.Task[Any] | None] = set()
        self._aside = ThreadPoolExecutor(1, thread_name_prefix="fal-aside")

    async def call(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        finish: Finish,
        aside: bool = False,
    ) -> Any:
        """Call in a slot, or `aside` of all slots; return what `finish` makes of the result.

        `finish` runs where the function does, so that a large result does not hold up the loop.
        A generator is returned as it is, for `values_of`. Never more than `max_multiplexing` run
        at once, also when a caller has gone whose request is still at work.
        """
        if aside:
            return await self.run(function, args, kwargs, finish, aside)
        task = asyncio.current_task()
        self.waiting.add(task)
        try:
            await self.slot.acquire()
        finally:
            self.waiting.remove(task)
        try:
            return await self.run(function, args, kwargs, finish)
        finally:
            self.slot.release()

    async def run(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        finish: Finish = lambda result: result,
        aside: bool = False,
    ) -> Any:
        """Call without a slot; `aside` also without waiting for a thread of the requests."""
        if on_the_loop(function):
            result = function(*args, **(kwargs or {}))
        else:
            call = functools.partial(contained, _finished, finish, function, args, kwargs or {})
            result = await self._in_thread(call, self._aside if aside else self._threads)
        if not inspect.isawaitable(result):
            return result
        return contained(finish, await awaited(result))

    async def _in_thread(self, call: Callable[[], Any], threads: Executor) -> Any:
        context = log_context.kept()
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(threads, context.run, call)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            # A thread cannot be stopped: the slot is free when its work has ended.
            await asyncio.wait([work])
            work.exception()  # nobody is left to hear of it
            raise

    async def values_of(
        self, values: Generator[Any, Any, Any] | AsyncGenerator[Any, Any], in_slot: bool = False
    ) -> AsyncGenerator[Any, None]:
        """Yield the values of a generator that a function returned as they come.

        `in_slot` says that the caller holds a slot.
        """
        async with contextlib.nullcontext() if in_slot else self.slot:
            if isinstance(values, AsyncGenerator):
                async with contextlib.aclosing(values):
                    while (value := await awaited(anext(values, _END))) is not _END:
                        yield value
                        await asyncio.sleep(0)  # one that never waits would hear of nothing
                return
            step = functools.partial(contained, next, values, _END)
            try:
                while (value := await self._in_thread(step, self._threads)) is not _END:
                    yield value
            finally:
                await self._in_thread(functools.partial(contained, values.close), self._threads)


def is_stream(result: Any) -> bool:
    """Whether a result is a generator, to be sent value by value."""
    return inspect.isgenerator(result) or inspect.isasyncgen(result)


def on_the_loop(function: Callable[..., Any]) -> bool:
    """Whether a function is async, also when it yields."""
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)


def _finished(
    finish: Finish,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    result = function(*args, **kwargs)
    return result if inspect.isawaitable(result) or is_stream(result) else finish(result)
