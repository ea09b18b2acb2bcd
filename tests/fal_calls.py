"""A program of somebody who uses fal's Python client: each of its methods once, told as JSON.

``python fal_calls.py sync|async APP STREAM_APP [FILE]``; FILE holds statements to run before.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import fal_client
import PIL.Image

if len(sys.argv) > 4:
    exec(Path(sys.argv[4]).read_text())

KIND, APP, STREAM_APP = sys.argv[1:4]
HI = {"word": "hi", "seconds": 0.3}
LONG = {"word": "long", "seconds": 1.0}


async def settled(value: Any) -> Any:
    """What a call gives, whichever of the two clients it is of."""
    return await value if inspect.isawaitable(value) else value


async def items(values: Any) -> list[Any]:
    """All that an iterator gives, whichever of the two clients it is of."""
    values = await settled(values)
    if hasattr(values, "__aiter__"):
        return [value async for value in values]
    return list(values)


def told(status: Any) -> dict[str, Any]:
    """A status as JSON can hold it."""
    return {"is": type(status).__name__, **asdict(status)}


class Calls:
    """One call per method of the client."""

    def __init__(self, client: Any) -> None:
        self.client = client

    async def run(self) -> Any:
        return await settled(self.client.run(APP, HI))

    async def submit(self) -> Any:
        handle = await settled(self.client.submit(APP, HI, hint="h", priority="normal"))
        return {"id": handle.request_id, "result": await settled(handle.get())}

    async def status(self) -> Any:
        handle = await settled(self.client.submit(APP, HI))
        await settled(handle.get())
        return told(await settled(self.client.status(APP, handle.request_id, with_logs=True)))

    async def iter_events(self) -> Any:
        handle = await settled(self.client.submit(APP, HI))
        return [told(event) for event in await items(handle.iter_events(with_logs=True))]

    async def result(self) -> Any:
        handle = await settled(self.client.submit(APP, HI))
        await settled(handle.get())
        return await settled(self.client.result(APP, handle.request_id))

    async def cancel(self) -> Any:
        first = await settled(self.client.submit(APP, LONG))
        while isinstance(await settled(first.status()), fal_client.Queued):
            await asyncio.sleep(0.02)
        second = await settled(self.client.submit(APP, HI))
        await settled(self.client.cancel(APP, second.request_id))
        try:
            return await settled(second.get())
        except fal_client.FalClientHTTPError as error:
            return error.status_code

    async def subscribe(self) -> Any:
        seen: list[Any] = []
        call = self.client.subscribe(APP, HI, with_logs=True, on_queue_update=seen.append)
        return {"result": await settled(call), "updates": [told(status) for status in seen]}

    async def stream(self) -> Any:
        return await items(self.client.stream(STREAM_APP, {"n": 3}))

    async def upload(self) -> Any:
        if len(sys.argv) < 5:
            return None  # no variable redirects it
        return await settled(self.client.upload(b"hello", "text/plain", "hello.txt"))

    async def upload_file(self) -> Any:
        if len(sys.argv) < 5:
            return None
        return await settled(self.client.upload_file(Path(__file__)))

    async def upload_image(self) -> Any:
        if len(sys.argv) < 5:
            return None
        image = PIL.Image.new("RGB", (4, 3), "red")
        return await settled(self.client.upload_image(image, "png"))


async def outcomes(calls: Calls) -> dict[str, Any]:
    """Each method's outcome, or its error."""
    found = {}
    for name in [name for name in vars(Calls) if not name.startswith("_")]:
        try:
            found[name] = await getattr(calls, name)()
        except Exception as error:
            found[name] = {"error": repr(error)}
    return found


client = fal_client.SyncClient() if KIND == "sync" else fal_client.AsyncClient()
print(json.dumps(asyncio.run(outcomes(Calls(client)))))
