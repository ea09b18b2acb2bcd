"""Who asks again for what a thread is at has its answer, if nobody else waits for it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.background import BackgroundTask
from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Receive

from fal_notebook.runner.runs import Run, Runs


def run(receive: Receive, body: bytes = b"1", request: str = "a") -> Run:
    return Run((request, "/"), body, receive)


async def gone() -> Message:
    return {"type": "http.disconnect"}


async def waits() -> Message:
    await asyncio.Event().wait()
    raise AssertionError


class Making:
    """Makes answers when it is told to."""

    def __init__(self, response: Any) -> None:
        self.response = response
        self.count = 0
        self.go = asyncio.Event()

    async def __call__(self) -> Any:
        self.count += 1
        await self.go.wait()
        if isinstance(self.response, Exception):
            raise self.response
        return self.response


async def asked(making: Making, first: Run, *others: Run) -> list[Any]:
    """Return all answers, made when all have asked."""
    runs = Runs()
    asking = []
    for one in (first, *others):
        asking.append(asyncio.ensure_future(runs.answer(one, making)))
        for _ in range(10):  # until it is at work, or has joined in
            await asyncio.sleep(0)
    making.go.set()
    return await asyncio.gather(*asking, return_exceptions=True)


async def test_who_asks_again_has_the_answer_of_the_run_that_was_left() -> None:
    making = Making(Response("made"))
    answers = await asked(making, run(gone), run(gone), run(waits))
    assert making.count == 1
    assert answers == [making.response] * 3


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (run(waits), run(waits)),
        (run(gone), run(waits, b"2")),
        (run(gone), run(waits, request="b")),
    ],
)
async def test_what_is_not_the_same_or_was_not_left_runs_by_itself(first: Run, second: Run) -> None:
    making = Making(Response("made"))
    await asked(making, first, second)
    assert making.count == 2


@pytest.mark.parametrize(
    "response",
    [
        StreamingResponse(iter(())),
        Response(background=BackgroundTask(print)),
        ValueError("no answer"),
    ],
)
async def test_what_cannot_be_sent_twice_is_made_again(response: Any) -> None:
    making = Making(response)
    answers = await asked(making, run(gone), run(waits))
    assert making.count == 2
    assert answers == [response] * 2
