"""The handle of an App: each endpoint called, streamed, submitted and mapped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError
from runner_bench import define, notebook

import fal_notebook as fal
from fal_notebook.discovery import GatewayInfo
from fal_notebook.exceptions import NotFoundError, RemoteError

SOURCE = """
from typing import Annotated, Any, Iterator
import fal_notebook as fal
from fastapi import BackgroundTasks, Body, Cookie, Depends, Header, HTTPException, Query, Request
from fastapi import Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
class Asked(BaseModel):
    n: int
class Given(BaseModel):
    n: int = 3
class Odd(Exception):
    pass
def known(x_user: Annotated[str, Header()] = "nobody") -> str:
    if x_user == "bad":
        raise HTTPException(403, "not you")
    return x_user
def odd() -> int:
    raise Odd("before the call")
class Everything(fal.App):
    def setup(self):
        self.later = []
    @fal.endpoint("/add")
    def add(self, n: int, m: int = 1) -> int:
        return n + m
    @fal.endpoint("/parts")
    def parts(self, n: int) -> Iterator[int]:
        yield from range(n)
    @fal.endpoint("/header")
    def header(self, n: int, x_mine: Annotated[str, Header()], response: Response) -> dict:
        response.headers["x-set"] = "yes"
        return {"n": n, "mine": x_mine, "set": {1, 2}}
    @fal.endpoint("/query")
    def query(self, q: Annotated[list[int], Query()], c: Annotated[str, Cookie()] = "") -> tuple:
        return (q, c)
    @fal.endpoint("/model")
    async def model(self, asked: Asked, user: Annotated[str, Depends(known)]) -> Asked:
        return Asked(n=asked.n + len(user))
    @fal.endpoint("/two")
    def two(self, asked: Asked, m: int, user: Annotated[str, Depends(known)]) -> int:
        return asked.n + m
    @fal.endpoint("/items/{name}")
    def item(self, name: str, n: int = 2) -> str:
        return name * n
    @fal.endpoint("/fails")
    def fails(self, here: Annotated[int, Depends(lambda: 1)]) -> None:
        raise Odd("really")
    @fal.endpoint("/before")
    def before(self, n: int, here: Annotated[int, Depends(odd)]) -> int:
        return n
    @fal.endpoint("/tasks")
    def tasks(self, tasks: BackgroundTasks) -> str:
        tasks.add_task(self.later.append, 1)
        return "soon"
    @fal.endpoint("/done")
    def done(self) -> list:
        return self.later
    @fal.endpoint("/plain")
    def plain(self, asked: Asked) -> int:
        return asked.n
    @fal.endpoint("/nested")
    def nested(self, request: Request, asked: Asked, more: Asked | None = None) -> list:
        return [request.method, asked.n, more and more.n]
    @fal.endpoint("/raw")
    async def raw(self, request: Request) -> Any:
        return [await request.json(), request.headers["content-type"]]
    @fal.endpoint("/read")
    async def read(self, asked: Asked, request: Request) -> Any:
        return [asked.n, await request.json()]
    @fal.endpoint("/default")
    async def default(self, given: Given, tasks: BackgroundTasks) -> int:
        return given.n
    @fal.endpoint("/sse")
    def sse(self, n: int) -> StreamingResponse:
        events = (f'id: 1\\r\\ndata: {{"n": {i}}}\\r\\n\\r\\n' for i in range(n))
        parts = [*events, "data: a\\nda", "ta: b\\n\\n"]
        return StreamingResponse(parts, media_type="text/event-stream")
    @fal.endpoint("/bytes")
    async def pieces(self, here: Annotated[int, Depends(lambda: 1)]):
        async def parts():
            yield b"a"
            raise Odd("late")
        return StreamingResponse(parts(), media_type="text/plain")
    @fal.endpoint("/answer")
    def answer(self):
        return Response(b"x", 202, media_type="text/plain")
    @fal.endpoint("/stream")
    def numbers(self, n: int, tasks: BackgroundTasks) -> Iterator[int]:
        yield from range(n)
        if n > 3:
            raise Odd("late")
"""


@pytest.fixture(scope="module")
def app(gateway: GatewayInfo) -> Iterator[Any]:
    with notebook():
        names = define(SOURCE)
        handle: Any = fal.deploy(names["Everything"], wait=True, min_concurrency=1)
        handle.Asked, handle.Odd = names["Asked"], names["Odd"]
        yield handle
        handle.delete()


def test_a_path_that_is_no_endpoint_is_told_from_an_app_that_is_not_there(app: Any) -> None:
    with pytest.raises(NotFoundError, match="everything: Path /nope not found"):
        app["/nope"]()
    for path in ("/health", "/openapi.json"):
        with pytest.raises(RemoteError, match=f"{path} of everything is no endpoint"):
            app[path]()


def test_each_endpoint_goes_through_the_queue(app: Any) -> None:
    assert app.add.submit(2, m=3).result() == 5
    assert list(app.add.map([1, 2], [10, 20])) == [11, 22]
    assert list(app.parts.submit(n=2).result()) == [0, 1]
    low = app.add.with_options(priority="low", no_retry=True)
    assert low.submit(n=1).result() == 2
    assert app["/add"].submit(n=1).result() == 2
    assert app.header.submit(n=1, x_mine="a").result()["mine"] == "a"
    assert app.request(app.add.submit(n=5).request_id).result() == 6


async def test_each_endpoint_goes_through_the_queue_without_blocking(app: Any) -> None:
    submitted = await app.add.asubmit(n=2)
    assert await submitted.aio() == 3
    assert [value async for value in app.add.amap([1, 2])] == [2, 3]


def test_what_fastapi_serves_takes_and_gives_python_values(app: Any) -> None:
    assert app.header(n=2, x_mine="m") == {"n": 2, "mine": "m", "set": {1, 2}}
    assert app.header(3, "p")["n"] == 3
    assert app.query(q=[1, 2], c="cake") == ([1, 2], "cake")
    assert app.model(app.Asked(n=2)) == app.Asked(n=8)
    assert app.model(n=2) == app.Asked(n=8)
    assert app.two(app.Asked(n=2), 3) == 5
    assert app.item(name="ab") == "abab"
    assert app.item("a b", n=1) == "a b"
    assert app["/items/ab"](n=1) == "ab"
    assert (app.tasks(), app.done()) == ("soon", [1])


def test_a_response_that_streams_is_an_iterator_of_its_events_or_bytes(app: Any) -> None:
    assert list(app.sse(n=2)) == list(app.sse.stream(2)) == [{"n": 0}, {"n": 1}, "a\nb"]
    assert list(app.sse.submit(n=1).result()) == [{"n": 0}, "a\nb"]
    pieces = app.pieces()
    assert next(pieces) == b"a"
    with pytest.raises(app.Odd, match="late"):
        next(pieces)


def test_another_response_comes_as_it_is(app: Any) -> None:
    assert (app.answer().status_code, app.answer().body) == (202, b"x")


def test_a_dict_becomes_the_model_that_an_endpoint_takes(app: Any) -> None:
    assert app.plain({"n": 1}) == app.plain(asked={"n": 1}) == app.plain(n=1) == 1
    assert app.nested(app.Asked(n=1), {"n": 2}) == ["POST", 1, 2]
    assert app.nested(asked={"n": 1}) == ["POST", 1, None]
    with pytest.raises(ValidationError, match="Field required"):
        app.plain({})


def test_an_endpoint_that_reads_its_request_is_given_json(app: Any) -> None:
    assert app.raw(a=1) == [{"a": 1}, "application/json"]
    assert app.raw([1, 2])[0] == [1, 2]
    assert app.read(app.Asked(n=1)) == app.read(n=1) == [1, {"n": 1}]
    assert app.raw.submit(a=2).result()[0] == {"a": 2}
    with pytest.raises(TypeError, match=r"`raw` reads its request, .* have no JSON form"):
        app.raw(object())


def test_a_model_of_defaults_need_not_be_given(app: Any) -> None:
    assert app.default() == 3


def test_what_fastapi_serves_streams(app: Any) -> None:
    assert list(app.numbers(n=2)) == list(app.numbers.stream(n=2)) == [0, 1]
    numbers = app.numbers(n=4)
    assert [next(numbers) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(app.Odd, match="late"):
        next(numbers)


def test_its_errors_come_back_as_they_were_raised(app: Any) -> None:
    with pytest.raises(app.Odd, match="really") as raised:
        app.fails()
    assert "in fails" in raised.value.__cause__.remote_traceback  # type: ignore[union-attr]
    with pytest.raises(app.Odd, match="before the call"):
        app.before(n=1)
    with pytest.raises(fal.exceptions.RemoteError, match=r"422.*x-mine.*Field required"):
        app.header(n=2)
    with pytest.raises(TypeError, match="unexpected keyword argument 'o'"):
        app.header(n=2, x_mine="a", o=1)
