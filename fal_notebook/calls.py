"""How a handle's call travels: Python values out, a value, an exception or a stream back."""

from __future__ import annotations

import functools
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fal_notebook.client import Client
from fal_notebook.exceptions import (
    GatewayUnavailableError,
    PythonMismatchError,
    RemoteError,
    UnpicklableError,
)
from fal_notebook.runner import frames


@dataclass(frozen=True)
class Sent:
    """Arguments on their way through the queue."""

    content: bytes
    content_type: str = frames.CONTENT_TYPE
    query: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Stream:
    """What a generator function answers: its values as they come."""

    values: AsyncGenerator[Any, None]


def dump(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """Return the request body of a call.

    Raises
    ------
    UnpicklableError
        When an argument cannot travel.
    """
    _tracker()()
    try:
        return frames.dump_call(args, kwargs)
    except Exception as error:  # any class may raise anything from its __reduce__
        raise UnpicklableError(f"an argument of {name} cannot be pickled: {error}") from None


@functools.cache
def _tracker() -> Callable[[], None]:
    """Return what has this process know its classes by their definition, not by chance."""
    try:
        from fal_notebook.payload.class_ids import track
    except ImportError:  # a runner: its classes came with their identity
        return lambda: None
    return track


async def call(client: Client, owner: str, name: str, body: bytes, path: str = "/") -> Any:
    """Call an app and return its value, or a `Stream` of a generator's values.

    Raises
    ------
    Exception
        What the function raised, caused by a RemoteError that shows the remote traceback; a
        RemoteError itself when that exception does not exist here.
    GatewayError
        When the app did not answer.
    """
    return await _value(name, _frames(client, owner, name, body, path))


async def answer(name: str, content_type: str, content: bytes) -> Any:
    """Return what a queued request was answered, as `call` does.

    Of one that was submitted over HTTP: its JSON as data, other text as str, all else as bytes.
    """
    if content_type == frames.CONTENT_TYPE:
        return await _value(name, _stored(content))
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "application/json":
        return json.loads(content)
    return content.decode(errors="replace") if kind.startswith("text/") else content


async def _stored(content: bytes) -> AsyncGenerator[tuple[Any, ...], None]:
    async def pieces() -> AsyncIterator[bytes]:
        yield content

    async for frame in frames.read(pieces()):
        yield frame


async def _value(name: str, received: AsyncGenerator[tuple[Any, ...], None]) -> Any:
    _tracker()()  # the cells of classes may have run since the call
    try:
        kind, *content = await received.__anext__()
    except StopAsyncIteration:
        raise _ended_early(name) from None
    if kind == "stream":
        return Stream(_values(name, received))
    await received.aclose()
    if kind == "raise":
        raise frames.to_exception(*content)
    return _load(name, content[0])


async def _frames(
    client: Client, owner: str, name: str, body: bytes, path: str
) -> AsyncGenerator[tuple[Any, ...], None]:
    began = False
    try:
        async with client.run(owner, name, path, body, frames.CONTENT_TYPE) as response:
            began = True
            if response.headers.get("content-type") != frames.CONTENT_TYPE:
                raise RemoteError(f"{path} of {name} is no endpoint; ask for it over HTTP")
            async for frame in frames.read(response.aiter_raw()):
                yield frame
    except GatewayUnavailableError as error:
        raise (_ended_early(name) if began else error) from None


async def _values(
    name: str, received: AsyncGenerator[tuple[Any, ...], None]
) -> AsyncGenerator[Any, None]:
    """Yield the values of a generator; its error is raised where it happened."""
    try:
        async for kind, *content in received:
            if kind == "raise":
                raise frames.to_exception(*content)
            if kind == "return":
                return
            yield _load(name, content[0])
        raise _ended_early(name)
    finally:
        await received.aclose()


def _load(name: str, pickled: bytes) -> Any:
    try:
        return frames.load(pickled)
    except PythonMismatchError:
        raise
    except Exception as error:  # any class may raise anything from its __setstate__
        raise RemoteError(
            f"what {name} returned cannot be read here ({type(error).__name__}: {error}); "
            "return plain data"
        ) from None


def _ended_early(name: str) -> RemoteError:
    return RemoteError(f"the answer of {name} ended early, its runner went away; see its logs")
