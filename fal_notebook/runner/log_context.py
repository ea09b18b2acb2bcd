"""Which request the code that runs now works for, also in tasks and threads that it starts.

These inherit it as long as the request is in flight: one that lives on may serve others, and then
no id is better than a wrong one, as in a process, which cannot know. What is given to a pool of
threads, or is called when a `Future` is done, keeps its own, whoever started the thread.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import Context, ContextVar, copy_context
from multiprocessing.pool import ThreadPool
from typing import Any

request_id: ContextVar[str | None] = ContextVar("fal_request_id", default=None)

# Requests in flight: their ids, and how often each (one that is tried again keeps its id).
_in_flight: dict[str, int] = {}


class _Inherited(str):
    """The id of the request that began this task or thread."""


# What takes a function that is called later, in whichever thread.
_GIVEN: dict[Any, tuple[str, ...]] = {
    ThreadPoolExecutor: ("submit",),
    Future: ("add_done_callback",),
    ThreadPool: ("apply_async", "_map_async", "imap", "imap_unordered"),
}
_CALLBACKS = ("callback", "error_callback")


def begin(request: str | None) -> None:
    """Note that the present task works for `request`."""
    request_id.set(None if request is None else _Inherited(request))
    if request is not None:
        _in_flight[request] = _in_flight.get(request, 0) + 1


def end(request: str | None) -> None:
    """Note that a request is no longer in flight."""
    if request is not None and (left := _in_flight.pop(request, 1) - 1) > 0:
        _in_flight[request] = left


def current() -> str | None:
    """Return the id of the request that the present code works for."""
    request = request_id.get()
    return None if isinstance(request, _Inherited) and request not in _in_flight else request


def kept() -> Context:
    """Return a context for the function of a request: it names it though its caller has gone."""
    context = copy_context()
    context.run(request_id.set, _plain(current()))
    return context


def _plain(request: str | None) -> str | None:
    return None if request is None else str(request)


def install() -> None:
    """Have threads and what is given to pools of threads carry the id, and no process."""
    os.register_at_fork(after_in_child=functools.partial(request_id.set, None))
    threading.Thread.start = _starting(threading.Thread.start)  # type: ignore[method-assign]
    for kind, names in _GIVEN.items():
        for name in names:
            setattr(kind, name, _giving(getattr(kind, name)))


def _starting(start: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(start)
    def start_with_request(thread: Any) -> None:
        request = current()
        if request is not None:
            run = thread.run

            def run_with_request() -> None:
                del thread.run  # a thread that refers to itself would wait for the collector
                request_id.set(_Inherited(request))
                run()

            thread.run = run_with_request
        start(thread)

    return start_with_request


def _giving(give: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(give)
    def give_with_request(taker: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        callbacks = {name: _carrying(kwargs[name]) for name in _CALLBACKS if kwargs.get(name)}
        return give(taker, _carrying(function), *args, **{**kwargs, **callbacks})

    return give_with_request


def _carrying(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that is called for the request for which it is given now."""
    request = _plain(current())

    def carried(*args: Any, **kwargs: Any) -> Any:
        token = request_id.set(request)
        try:
            return function(*args, **kwargs)
        finally:
            request_id.reset(token)

    return carried
