"""What FastAPI serves is served by every FastAPI that we say we know, from the oldest on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from runner_bench import define, notebook
from serving import eventually
from websockets.sync.client import connect

import fal_notebook as fal
from fal_notebook.discovery import GatewayInfo
from fal_notebook.exceptions import DeployError

SOURCE = """
import fal_notebook as fal
from typing import Annotated, Iterator
from fastapi import BackgroundTasks, Depends, File, Form, Header, HTTPException, Request
from fastapi import Response, UploadFile, WebSocket
def known(x_user: str = Header("nobody")) -> str:
    if x_user == "bad":
        raise HTTPException(403, "not you")
    return x_user
class Served(fal.App):
    def setup(self):
        self.later = []
    @fal.endpoint("/items/{iid}")
    def item(self, iid: int, q: str = "x", x_tok: str = Header("none")) -> dict:
        return {"iid": iid, "q": q, "tok": x_tok}
    @fal.endpoint("/upload")
    async def upload(self, file: UploadFile, word: str = Form("")) -> dict:
        return {"size": len(await file.read()), "word": word}
    @fal.endpoint("/tasks")
    def tasks(self, tasks: BackgroundTasks, response: Response, request: Request) -> list:
        tasks.add_task(self.later.append, 1)
        response.headers["x-set"] = request.method
        return self.later
    @fal.endpoint("/who")
    async def who(self, user: Annotated[str, Depends(known)], n: int = 1) -> str:
        return user * n
    @fal.endpoint("/gone")
    def gone(self, x_a: str = Header("")) -> str:
        raise HTTPException(410, "gone", headers={"x-why": "old"})
    @fal.endpoint("/stream")
    def numbers(self, n: int, x_a: str = Header("")) -> Iterator[int]:
        yield from range(n)
    @fal.endpoint("/talk/{room}", is_websocket=True)
    async def talk(self, socket: WebSocket, room: str, user: str = Depends(known)) -> None:
        await socket.accept()
        await socket.send_text(room + user + await socket.receive_text())
        await socket.close()
    @fal.endpoint("/version")
    def version(self) -> str:
        import fastapi
        return fastapi.__version__
def function(n: int, x_tok: str = Header("none"), user: str = Depends(known)) -> list:
    return [n, x_tok, user]
"""
PINS = [
    ["fastapi==0.115.0", "pydantic==2.8.2"],
    ["fastapi==0.115.14"],
    ["fastapi==0.116.1"],
    ["fastapi==0.121.0"],
    ["fastapi"],
]


@pytest.fixture(scope="module", params=PINS, ids=lambda pins: str(pins[0]))
def app(gateway: GatewayInfo, request: Any) -> Iterator[Any]:
    with notebook():
        options = {"requirements": request.param, "auth": "public", "max_concurrency": 1}
        handle: Any = fal.deploy(define(SOURCE)["Served"], wait=True, **options)
        handle.pinned = request.param[0].partition("==")[2]
        yield handle
        handle.delete()


def test_a_parameter_has_no_example_that_nobody_gave(app: Any) -> None:
    told = json.dumps(app.openapi())
    assert '"x-tok"' in told
    assert '"example"' not in told


def test_parameters_headers_forms_and_files_are_read(app: Any) -> None:
    told = {"x-tok": "t", "x-user": "me"}
    with httpx.Client(base_url=app.url, headers=told, timeout=20, trust_env=False) as client:
        assert app.pinned in client.post("version").json()
        item = client.post("items/3", json={"q": "y"})
        assert item.json() == {"iid": 3, "q": "y", "tok": "t"}
        sent = client.post("upload", files={"file": b"abc"}, data={"word": "w"})
        assert sent.json() == {"size": 3, "word": "w"}
        assert client.post("who", json={"n": 2}).json() == "meme"
        assert client.post("items/three", json={}).status_code == 422


def test_responses_tasks_refusals_and_streams_are_sent(app: Any) -> None:
    with httpx.Client(base_url=app.url, timeout=20, trust_env=False) as client:
        assert client.post("tasks").headers["x-set"] == "POST"
        eventually(lambda: 1 in client.post("tasks").json())  # it runs after the answer
        gone = client.post("gone")
        assert (gone.status_code, gone.headers["x-why"]) == (410, "old")
        assert client.post("who", headers={"x-user": "bad"}).status_code == 403
        events = client.post("stream", json={"n": 2}).text
        told = [line for line in events.splitlines() if line.startswith("data:")]
        assert [json.loads(line[5:]) for line in told] == [0, 1]
        assert "/items/{iid}" in client.get("openapi.json").json()["paths"]


def test_a_websocket_has_parameters(app: Any) -> None:
    url = f"{app.url}/talk/a".replace("http", "ws", 1)
    with connect(url, proxy=None) as socket:
        socket.send("!")
        assert socket.recv() == "anobody!"


def test_a_handle_calls_it(app: Any) -> None:
    assert app.item(iid=3, x_tok="h") == {"iid": 3, "q": "x", "tok": "h"}
    assert app.who(n=2) == "nobodynobody"
    assert list(app.numbers(n=2)) == [0, 1]


@pytest.mark.parametrize("pins", PINS[:1], ids=lambda pins: str(pins[0]))
def test_a_function_is_served_by_the_oldest(gateway: GatewayInfo, pins: list[str]) -> None:
    with notebook():
        handle = fal.deploy(define(SOURCE)["function"], requirements=pins, wait=True)
        assert handle(n=1, x_tok="t") == [1, "t", "nobody"]
        handle.delete()


def test_an_older_one_is_refused_by_its_version(gateway: GatewayInfo) -> None:
    said = r"FastAPI 0\.114\.2 is too old to serve this; require fastapi>=0\.115"
    with notebook(), pytest.raises(DeployError, match=said):
        fal.deploy(define(SOURCE)["function"], requirements=["fastapi==0.114.2"], wait=True)
