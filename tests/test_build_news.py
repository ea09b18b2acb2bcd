"""What followers of a deploy hear of its build: every step, and of details few, short and clean."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from fal_notebook.backends.details import Detail
from fal_notebook.gateway import build_news
from fal_notebook.gateway.build_news import WIDTH, BuildNews


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    monkeypatch.setattr(build_news, "PAUSE", 0.05)
    return []


def news(heard: list[Any]) -> BuildNews:
    def detail(owner: str, app: str, data: dict[str, Any]) -> None:
        heard.append((data["message"], data["part"]))

    gateway: Any = SimpleNamespace(
        redaction=SimpleNamespace(current=lambda: lambda text: text.replace("swordfish", "***")),
        events=SimpleNamespace(detail=detail),
    )
    revision: Any = SimpleNamespace(id="r", owner="me", app="app")
    return BuildNews(gateway, revision, heard.append)


async def test_of_many_details_the_newest_is_told_now_and_then(heard: list[Any]) -> None:
    told = news(heard)
    told("Step 1/2 : RUN swordfish")
    for number in range(1000):
        told(Detail(f"line {number}", 0.5))
    assert heard == ["Step 1/2 : RUN ***", ("line 0", 0.5)]
    await asyncio.sleep(0.2)
    assert heard[2:] == [("line 999", 0.5)]
    told(Detail("swordfish" + "x" * 1000))
    assert heard[3:] == [("***" + "x" * (WIDTH - 3), None)]


async def test_details_of_a_step_that_has_ended_are_not_told(heard: list[Any]) -> None:
    told = news(heard)
    for line in (Detail("one"), Detail("two"), "Step 2/2 : RUN x", Detail("three")):
        told(line)
    assert heard == [("one", None), "Step 2/2 : RUN x"]
    await asyncio.sleep(0.5)
    told(Detail("four"))
    told(Detail("five"))
    told.close()
    await asyncio.sleep(0.5)
    assert heard[2:] == [("three", None), ("four", None)]
