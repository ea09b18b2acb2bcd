"""The peer without any platform: the benchmark's functions as FastAPI routes under uvicorn.

``python bare_app.py PORT``
"""

from __future__ import annotations

import contextlib
import sys

import uvicorn
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from pydantic import BaseModel

app = FastAPI()


class Echo(BaseModel):
    text: str
    times: int = 1


class Answer(BaseModel):
    text: str


@app.post("/")
def echo(body: Echo) -> Answer:
    return Answer(text=body.text * body.times)


@app.post("/async")
async def echo_async(body: Echo) -> Answer:
    return Answer(text=body.text * body.times)


@app.websocket("/socket")
async def idle(socket: WebSocket) -> None:
    await socket.accept()
    with contextlib.suppress(WebSocketDisconnect):
        while True:
            await socket.receive_text()


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), log_level="warning", access_log=False)
