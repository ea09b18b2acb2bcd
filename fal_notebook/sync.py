"""The sync edge: one background event loop, on which all of a kernel's gateway traffic runs."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

from fal_notebook.exceptions import FalNotebookError, OutOfScopeError, RemoteError
from fal_notebook.runner.escapes import awaited, original

T = TypeVar("T")

THREAD = "fal-notebook"

_lock = threading.Lock()
_loops: dict[int, asyncio.AbstractEventLoop] = {}


def __getattr__(name: str) -> Any:
    if name == "sync_dir":  # fal has it in a module of this name
        raise OutOfScopeError(name)
    raise AttributeError(f"module 'fal_notebook.sync' has no attribute {name!r}")


def submit(coroutine: Coroutine[Any, Any, T]) -> Future[T]:
    """Run a coroutine on the background loop, which starts at first use."""
    return asyncio.run_coroutine_threadsafe(coroutine, _background())


def wait(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the background loop and return its result; Ctrl-C cancels it."""
    __tracebackhide__ = True
    future = submit(awaited(coroutine))
    try:
        return future.result()
    except BaseException as error:
        future.cancel()
        raised = _for_the_caller(error)
    raise raised  # outside of the handler: what carried it is no context of it


async def there(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the background loop and await its result on the caller's."""
    __tracebackhide__ = True
    try:
        return await asyncio.wrap_future(submit(awaited(coroutine)))
    except Exception as error:
        raised = _for_the_caller(error)
    raise raised


def _for_the_caller(error: BaseException) -> BaseException:
    """Return an error without our frames where nothing of ours is at fault: they hide the rest."""
    error = original(error)
    told = isinstance(error, (KeyboardInterrupt, FalNotebookError))
    if told or isinstance(error.__cause__, RemoteError):
        return error.with_traceback(None)
    return error


def iterate(items: AsyncIterator[T]) -> Iterator[T]:
    """Yield what an async iterator on the background loop yields; closing it closes that one."""
    __tracebackhide__ = True
    try:
        while True:
            try:
                item = wait(_next(items))
            except StopAsyncIteration:
                return
            yield item
    finally:
        submit(_close(items))  # not waited for: an iterator may be collected on that very loop


async def aiterate(items: AsyncIterator[T]) -> AsyncIterator[T]:
    """Yield on the caller's loop what an async iterator on the background loop yields."""
    try:
        while True:
            try:
                item = await there(_next(items))
            except StopAsyncIteration:
                return
            yield item
    finally:
        submit(_close(items))


async def _next(items: AsyncIterator[T]) -> T:
    return await items.__anext__()


async def _close(items: Any) -> None:
    """Close an async iterator, also one whose last step has only just been cancelled."""
    for _ in range(100):
        try:
            await items.aclose()
        except RuntimeError:  # it is still running
            await asyncio.sleep(0.01)
        except Exception:
            return
        else:
            return


def _background() -> asyncio.AbstractEventLoop:
    """Return this process's loop; a forked child has the variable but not the thread."""
    with _lock:
        loop = _loops.get(os.getpid())
        if loop is None:
            loop = _loops[os.getpid()] = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name=THREAD, daemon=True).start()
        return loop
