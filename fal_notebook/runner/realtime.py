"""`realtime`: messages of a WebSocket become calls of a method, and its results messages."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.websockets import WebSocket, WebSocketDisconnect

from fal_notebook.realtime_endpoint import RealtimeOptions
from fal_notebook.runner import messages
from fal_notebook.runner.messages import END, Inputs
from fal_notebook.runner.reports import Reports
from fal_notebook.runner.schema import streams
from fal_notebook.runner.workers import Workers

# What a caller may ask for as max_buffering.
_BUFFERING = range(1, 61)


class Realtime:
    """A method that answers messages.

    Parameters
    ----------
    method : callable
        Bound to its app.
    hints : mapping
        Its resolved type hints.

    Attributes
    ----------
    mode : str
        unary, server_streaming, client_streaming or bidi.
    options : RealtimeOptions

    Raises
    ------
    TypeError
        When the method cannot be served.
    """

    def __init__(
        self,
        method: Callable[..., Any],
        options: RealtimeOptions,
        hints: Mapping[str, Any],
        workers: Workers,
        reports: Reports,
    ) -> None:
        self.options = options
        self._method = method
        self._workers = workers
        self._reports = reports
        self._decode = options.decode_message or messages.unpack
        self._encode = options.encode_message or messages.pack
        given = hints.get(_first(method), Any)
        takes, gives = messages.item_of(given), messages.item_of(hints.get("return", Any))
        self.mode = _MODES[takes is not None, gives is not None or streams(method)]
        if takes is not None and not _is_async(method):
            raise TypeError(f"`{method.__name__}` takes an iterator of messages: make it async")
        _refuse_other_arguments(method, 1 if takes is not None else options.max_batch_size)
        kind = options.input_modal if options.input_modal is not ... else takes or given
        self._input = TypeAdapter(kind if kind is not None else Any)

    async def serve(self, socket: WebSocket) -> None:
        """Answer messages until their caller goes, or none comes for `session_timeout`.

        Raises
        ------
        Exception
            What the method raised, once the caller was told.
        """
        await socket.accept()
        try:
            await (self._unary(socket) if self.mode == "unary" else self._stream(socket))
        except WebSocketDisconnect:
            raise
        except messages.WrongMessageError as error:
            await _end(socket, "INTERNAL_ERROR", self._reports.redact(str(error)))
        except Exception as error:
            await _end(socket, "INTERNAL_ERROR", self._reports.redact(str(error)))
            raise
        else:
            await _end(socket, "TIMEOUT", "no inputs, reconnect when needed!")

    # --- a call for each message -------------------------------------------------------------
    async def _unary(self, socket: WebSocket) -> None:
        inputs = Inputs(self._buffering(socket))
        reading = asyncio.ensure_future(self._read(socket, inputs))
        calling = asyncio.ensure_future(self._answer(socket, inputs))
        try:
            await asyncio.wait((reading, calling), return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                reading.result()
            await calling
        finally:
            for task in (reading, calling):
                task.cancel()
            await asyncio.gather(reading, calling, return_exceptions=True)

    def _buffering(self, socket: WebSocket) -> int | None:
        """Return how many messages may wait: what the endpoint says, or less for this caller."""
        asked = socket.query_params.get("max_buffering", "")
        least = int(asked) if asked.isdecimal() and int(asked) in _BUFFERING else None
        return min((n for n in (self.options.buffering, least) if n is not None), default=None)

    async def _read(self, socket: WebSocket, inputs: Inputs) -> None:
        while (item := await self._next(socket)) is not END:
            await inputs.put(item)
        await inputs.end()

    async def _answer(self, socket: WebSocket, inputs: Inputs) -> None:
        while batch := await inputs.take(self.options.max_batch_size):
            socket.scope["fal_given"] = lambda batch=batch: ", ".join(map(repr, batch))
            await self._send(socket, await self._workers.run(self._method, batch))

    # --- one call for all messages -----------------------------------------------------------
    async def _stream(self, socket: WebSocket) -> None:
        if self.mode == "server_streaming":
            given = await self._next(socket)
            if given is END:
                return
            socket.scope["fal_given"] = lambda: repr(given)
        else:
            given = self._each(socket)
        result = await self._workers.run(self._method, (given,))
        if self.mode == "client_streaming":
            await self._send(socket, result)
            return
        values = self._workers.values_of(messages.as_generator(result), in_slot=True)
        async with contextlib.aclosing(values):
            async for value in values:
                await self._send(socket, value)

    async def _each(self, socket: WebSocket) -> AsyncGenerator[Any, None]:
        """Yield messages until none comes any more, because their caller has gone or is silent."""
        with contextlib.suppress(WebSocketDisconnect):
            while (item := await self._next(socket)) is not END:
                yield item

    # --- messages ----------------------------------------------------------------------------
    async def _next(self, socket: WebSocket) -> Any:
        """Return what the next message says, END when none came in time."""
        try:
            message = await asyncio.wait_for(socket.receive(), self.options.session_timeout)
        except asyncio.TimeoutError:
            return END
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message["code"], message.get("reason"))
        value = messages.decoded(self._decode, message.get("bytes"))
        try:
            return self._input.validate_python(value)
        except ValidationError as error:
            raise messages.WrongMessageError(str(error)) from None

    async def _send(self, socket: WebSocket, value: Any) -> None:
        if isinstance(value, BaseModel):
            value = value.model_dump()
        if not isinstance(value, dict):
            name = self._method.__name__
            raise TypeError(f"`{name}` gave {type(value).__name__}: give a dict or pydantic model")
        data: Any = self._encode(value)
        await (socket.send_text(data) if isinstance(data, str) else socket.send_bytes(data))


_MODES = {
    (False, False): "unary",
    (False, True): "server_streaming",
    (True, False): "client_streaming",
    (True, True): "bidi",
}


def _first(method: Callable[..., Any]) -> str:
    parameters = inspect.signature(method).parameters.values()
    positional = [p for p in parameters if p.kind not in (p.KEYWORD_ONLY, p.VAR_KEYWORD)]
    if not positional:
        raise TypeError(f"`{method.__name__}` has no parameter for what callers send; add one")
    return positional[0].name


def _refuse_other_arguments(method: Callable[..., Any], most: int) -> None:
    """Refuse a method that cannot be called with one message, or not with as many as may come."""
    try:
        for count in {1, most}:
            inspect.signature(method).bind(*[None] * count)
    except TypeError as error:
        given = "one message" if most == 1 else f"one to {most} messages, as in *messages"
        raise TypeError(
            f"`{method.__name__}` is called with {given}, and cannot be: {error}"
        ) from None


def _is_async(method: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method)


async def _end(socket: WebSocket, error: str, reason: str) -> None:
    """Tell the caller why the session ends, and close; one that has gone need not hear it."""
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        await socket.send_json({"type": "x-fal-error", "error": error, "reason": reason})
        await socket.close()
