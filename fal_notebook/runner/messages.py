"""Messages of `realtime`: read, written, and kept until a call takes them."""

from __future__ import annotations

import asyncio
import collections
import inspect
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Generator,
    Iterable,
    Iterator,
)
from typing import Any, get_args, get_origin

from pydantic_core import to_jsonable_python

# Stands for the end of what a caller sends.
END = object()
# Without `buffering` so many messages are read ahead of the calls.
AHEAD = 16

_STREAMS = (AsyncIterator, AsyncGenerator, AsyncIterable, Iterator, Generator, Iterable)


class WrongMessageError(Exception):
    """A caller sent what cannot be read or does not fit."""


def unpack(message: bytes) -> Any:
    """Read msgpack."""
    import msgpack  # type: ignore[import-untyped]

    return msgpack.unpackb(message, raw=False)


def pack(value: Any) -> bytes:
    """Write msgpack; what it has no form for is written as in JSON."""
    import msgpack

    packed: bytes = msgpack.packb(value, use_bin_type=True, default=to_jsonable_python)
    return packed


def decoded(decode: Callable[[bytes], Any], message: bytes | None) -> Any:
    """Return what a message says.

    Raises
    ------
    WrongMessageError
        When it is text, or cannot be decoded.
    """
    if message is None:
        raise WrongMessageError("this is a text message; send binary ones, encoded with msgpack")
    try:
        return decode(message)
    except Exception as error:
        kind = type(error).__name__
        raise WrongMessageError(f"the message cannot be decoded: {str(error) or kind}") from error


def item_of(annotation: Any) -> Any:
    """Return the type of one item where the annotation is an iterator, else None."""
    if (get_origin(annotation) or annotation) not in _STREAMS:
        return None
    return (get_args(annotation) or (Any,))[0]


def as_generator(values: Any) -> Generator[Any, Any, Any] | AsyncGenerator[Any, Any]:
    """Return whatever can be iterated as a generator.

    Raises
    ------
    TypeError
        When it cannot be iterated.
    """
    if inspect.isgenerator(values) or inspect.isasyncgen(values):
        return values
    if isinstance(values, AsyncIterable):
        return (value async for value in values)
    return (value for value in values)


class Inputs:
    """What came and no call has taken yet.

    Parameters
    ----------
    buffering : int or None
        Of more than so many the oldest are dropped; None: `put` waits instead.
    """

    def __init__(self, buffering: int | None) -> None:
        self._items: collections.deque[Any] = collections.deque(maxlen=buffering)
        self._changed = asyncio.Condition()
        self._ended = False

    async def put(self, item: Any) -> None:
        """Add what came."""
        async with self._changed:
            if self._items.maxlen is None:
                await self._changed.wait_for(lambda: len(self._items) < AHEAD)
            self._items.append(item)
            self._changed.notify_all()

    async def end(self) -> None:
        """Note that nothing comes any more."""
        async with self._changed:
            self._ended = True
            self._changed.notify_all()

    async def take(self, most: int) -> tuple[Any, ...]:
        """Wait for input and return what goes into one call; nothing at the end."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._items or self._ended)
            batch: list[Any] = []
            while self._items and len(batch) < most and _fits(batch, self._items[0]):
                batch.append(self._items.popleft())
            self._changed.notify_all()
            return tuple(batch)


def _fits(batch: list[Any], item: Any) -> bool:
    can_batch = getattr(batch[0], "can_batch", None) if batch else None
    return can_batch is None or bool(can_batch(item, len(batch)))
