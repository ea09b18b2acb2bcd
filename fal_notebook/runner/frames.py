"""How Python values travel between a handle and its runner: cloudpickle frames, owner only.

The request body is one pickled ``(args, kwargs)``. The answer is a sequence of frames, each an
8-byte big-endian length and a pickle of plain data: of a generator first ``("stream",)`` and
``("item", value)`` per yielded value; last ``("return", value)`` or ``("raise", type name,
message, traceback, exception or None)``; without a traceback it is the runner's own refusal.
Values lie inside as bytes of their own, so that one which cannot be loaded does not hide the rest.
They begin with a line that names the Python of their maker, compared before anything is unpickled:
code of another minor version can kill the interpreter.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any, BinaryIO

from fal_notebook.app_exceptions import said
from fal_notebook.exceptions import PythonMismatchError, RemoteError
from fal_notebook.runner import unpickling
from fal_notebook.runner.escapes import original
from fal_notebook.runner.pickles import Pickler

# Names the type of what the function raised; the answer is well, the call was not.
RAISED = "x-fal-raised"
# Says with which status the same error is answered to who sends JSON.
RAISED_STATUS = "x-fal-raised-status"
CONTENT_TYPE = "application/vnd.fal-notebook.pickle"
_LENGTH = struct.Struct(">Q")
_HERE = "{}.{}".format(*sys.version_info)
_LONGEST_HEAD = 8
# In so many bytes a frame says of which kind it is, and the type of an error.
_LONGEST_NAME = 4096


def dump(value: Any) -> bytes:
    """Return the bytes of a value: the line that names this Python, then the pickle."""
    buffer = io.BytesIO()
    buffer.write(f"{_HERE}\n".encode())
    Pickler(buffer).dump(value)
    return buffer.getvalue()


def load(content: bytes) -> Any:
    """Return the value of such bytes.

    Raises
    ------
    PythonMismatchError
        When another Python minor made them; nothing was unpickled then.
    """
    head, _, _ = content[:_LONGEST_HEAD].partition(b"\n")
    if head != _HERE.encode():
        made_by = head.decode("ascii", "replace") if head.startswith(b"3.") else "of another kind"
        raise PythonMismatchError(
            f"Python objects cannot travel between Python {made_by}, which sent them, and Python "
            f"{_HERE}, which got them; call over JSON, httpx.post(handle.url, json={{…}}), or from "
            "a kernel of the app's Python"
        )
    return unpickling.load(content, len(head) + 1)


def dump_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """Return the request body of a call."""
    return dump((args, kwargs))


def load_call(body: bytes) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call."""
    args, kwargs = load(body)
    return args, kwargs


def _frame(content: tuple[Any, ...]) -> bytes:
    data = pickle.dumps(content)
    return _LENGTH.pack(len(data)) + data


def opened() -> bytes:
    """Return the frame that announces the values of a generator."""
    return _frame(("stream",))


def item(value: Any) -> bytes:
    """Return the frame of one value of a generator."""
    return _frame(("item", dump(value)))


def returned(value: Any) -> bytes:
    """Return the frame of a result."""
    return _frame(("return", dump(value)))


def raised(error: BaseException, text: str, redact: Callable[[str], str] = str) -> bytes:
    """Return the frame of an error: its traceback as text, and itself if it can travel.

    One that holds what `redact` takes out does not: notebooks keep what they show.
    """
    if isinstance(error, PythonMismatchError):  # of a call that never began
        return _frame(("raise", type(error).__qualname__, str(error), "", None))
    error = original(error)
    message, exception = said(error), _pickled(error)
    held = f"{message} {(exception or b'').decode(errors='replace')}"  # text is plain in a pickle
    if redact(held) != held:
        exception = None
    return _frame(("raise", redact(type(error).__qualname__), redact(message), text, exception))


def raised_headers(error: BaseException, status: int) -> dict[str, str]:
    """Return the headers that tell who reads no frames of an error."""
    return {RAISED: _ascii(type(original(error)).__name__), RAISED_STATUS: str(status)}


def _ascii(name: str) -> str:
    return name.encode("ascii", "replace").decode()


def _pickled(error: BaseException) -> bytes | None:
    """Return an error as bytes that can be loaded, or None where it cannot travel."""
    try:
        data = dump(error)
        load(data)  # fails where its class pickles it as what it does not take
    except Exception:
        return None
    return data


def raised_in(answer: BinaryIO) -> str:
    """Return the type name of the error that ends an answer, "" of one that ends otherwise.

    Nothing is unpickled, for the gateway asks; bytes of any other kind are no error.
    """
    start = 0
    try:
        while head := answer.read(_LENGTH.size):
            start = answer.tell()
            answer.seek(start + _LENGTH.unpack(head)[0])
        answer.seek(start)
        last = pickletools.genops(answer.read(_LONGEST_NAME))
        texts = (value for _, value, _ in last if isinstance(value, str))
        kind, name = next(texts), next(texts)
    except (ValueError, OverflowError, OSError, StopIteration, struct.error):
        return ""
    return _ascii(name.rpartition(".")[2]) if kind == "raise" else ""


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
    if type_name == PythonMismatchError.__name__ and not text:
        return PythonMismatchError(message)
    cause = RemoteError(f"\n{text}", type_name, text)
    try:
        error = load(pickled) if pickled is not None else None
    except Exception:
        error = None
    # In a coroutine, an end of iteration would be taken for its own.
    if not isinstance(error, Exception) or isinstance(error, (StopIteration, StopAsyncIteration)):
        error = RemoteError(f"{type_name}: {message}", type_name, text)
    error.__cause__ = cause
    return error
