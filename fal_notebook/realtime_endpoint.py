"""`realtime`: marks a method of an `App` as one that answers messages; serving is the runner's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from fal_notebook.endpoints import F, RouteSignature, mark
from fal_notebook.exceptions import AppDefinitionError


@dataclass(frozen=True)
class RealtimeOptions:
    """What the decorator says; `...` stands for what the annotations say."""

    buffering: int | None
    session_timeout: float | None
    input_modal: Any
    output_modal: Any
    max_batch_size: int
    content_type: str
    encode_message: Callable[[Any], bytes] | None
    decode_message: Callable[[bytes], Any] | None


def realtime(
    path: str,
    *,
    buffering: int | None = None,
    session_timeout: float | None = None,
    input_modal: Any = ...,
    output_modal: Any = ...,
    max_batch_size: int = 1,
    content_type: str = "application/msgpack",
    encode_message: Callable[[Any], bytes] | None = None,
    decode_message: Callable[[bytes], Any] | None = None,
) -> Callable[[F], F]:
    """Call a method for each message of a WebSocket at `path`; what it returns is sent back.

    A method that takes an ``AsyncIterator`` is called once for all messages; a generator that takes
    none once, for the first, and then the session ends.

    Parameters
    ----------
    path : str
        Begins with ``/``; fal's clients look for ``/realtime``.
    buffering : int, optional
        So many messages wait; of more, the oldest are dropped. Unset, the caller is held back.
    session_timeout : float, optional
        Seconds without a message after which the session ends.
    input_modal, output_modal : type, optional
        What a message must be, and what is sent; unset, what the annotations say.
    max_batch_size : int
        A call gets up to so many messages that wait, as positional arguments, as far as the first
        one's ``can_batch(next, size)`` agrees.
    content_type : str
        Of the messages; the document names it.
    encode_message, decode_message : callable, optional
        In place of msgpack.

    Raises
    ------
    AppDefinitionError
        When a number is none or out of its range, or `endpoint` would refuse.
    """
    for name, value in (("buffering", buffering), ("max_batch_size", max_batch_size)):
        if value is not None and not (isinstance(value, int) and value >= 1):
            _refuse(path, name, value, "a whole number from 1")
    timeout = session_timeout
    if timeout is not None and not (isinstance(timeout, (int, float)) and timeout > 0):
        _refuse(path, "session_timeout", timeout, "seconds above 0")
    options = RealtimeOptions(
        *(buffering, session_timeout, input_modal, output_modal),
        *(max_batch_size, content_type, encode_message, decode_message),
    )
    return mark(RouteSignature(path, is_websocket=True, realtime=options))


def _refuse(path: str, name: str, value: Any, allowed: str) -> NoReturn:
    raise AppDefinitionError(f"{name}={value!r} of realtime {path!r} must be {allowed}")
