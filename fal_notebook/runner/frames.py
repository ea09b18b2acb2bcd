"""How Python values travel between a handle and its runner: cloudpickle frames, owner only.

The request body is one pickled ``(args, kwargs)``. The answer is a sequence of frames, each an
8-byte big-endian length and a pickle of plain data: of a generator first ``("stream",)`` and
``("item", value)`` per yielded value; last ``("return", value)`` or ``("raise", type name,
message, traceback, exception or None)``. Values lie inside as bytes of their own, so that one
which cannot be loaded does not hide the rest.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import AsyncIterator
from typing import Any

import cloudpickle

from fal_notebook.exceptions import RemoteError

# Names the type of what the function raised; the answer is well, the call was not.
RAISED = "x-fal-raised"
CONTENT_TYPE = "application/vnd.fal-notebook.pickle"
_LENGTH = struct.Struct(">Q")


def dump_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """Return the request body of a call."""
    data: bytes = cloudpickle.dumps((args, kwargs))
    return data


def load_call(body: bytes) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call."""
    args, kwargs = pickle.loads(body)
    return args, kwargs


def _frame(content: tuple[Any, ...]) -> bytes:
    data = pickle.dumps(content)
    return _LENGTH.pack(len(data)) + data


def opened() -> bytes:
    """Return the frame that announces the values of a generator."""
    return _frame(("stream",))


def item(value: Any) -> bytes:
    """Return the frame of one value of a generator."""
    return _frame(("item", cloudpickle.dumps(value)))


def returned(value: Any) -> bytes:
    """Return the frame of a result."""
    return _frame(("return", cloudpickle.dumps(value)))


def raised(error: BaseException, text: str) -> bytes:
    """Return the frame of an error: its traceback as text, and itself if it can travel."""
    exception = _pickled(error)
    return _frame(("raise", type(error).__qualname__, str(error), text, exception))


def _pickled(error: BaseException) -> bytes | None:
    """Return an error as bytes that can be loaded, or None where it cannot travel."""
    parts = _Rebuilt(type(error), error.args, vars(error))
    for form in (error, parts):
        try:
            data: bytes = cloudpickle.dumps(form)
            pickle.loads(data)  # fails where __init__ takes other arguments than `args`
        except Exception:
            continue
        return data
    return None


class _Rebuilt:
    """An exception that is loaded without calling its ``__init__``."""

    def __init__(self, *parts: Any) -> None:
        self._parts = parts

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, self._parts


def _rebuild(
    kind: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]
) -> BaseException:
    error = kind.__new__(kind)
    error.args = args
    vars(error).update(state)
    return error


async def read(chunks: AsyncIterator[bytes]) -> AsyncIterator[tuple[Any, ...]]:
    """Yield the content of each frame as it arrives.

    Raises
    ------
    RemoteError
        When the stream ends inside a frame.
    """
    buffer = bytearray()
    async for chunk in chunks:
        buffer += chunk
        while len(buffer) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(buffer)[0]
            if len(buffer) < end:
                break
            yield pickle.loads(buffer[_LENGTH.size : end])
            del buffer[:end]
    if buffer:
        raise RemoteError("the runner's answer ended early; see %fal logs")


def to_exception(type_name: str, message: str, text: str, pickled: bytes | None) -> BaseException:
    """Return the exception to raise here; its cause shows the remote traceback as text."""
    cause = RemoteError(f"\n{text}", type_name, text)
    try:
        error = pickle.loads(pickled) if pickled is not None else None
    except Exception:
        error = None
    if not isinstance(error, Exception):
        error = RemoteError(f"{type_name}: {message}", type_name, text)
    error.__cause__ = cause
    return error
