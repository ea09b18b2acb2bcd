"""How far a deploy is: a bar, time that counts up, what the step said; in a terminal one line."""

from __future__ import annotations

import asyncio
import io
import sys
import time
from concurrent.futures import Future
from typing import Any

import pytest

from fal_notebook import deploy_progress, terminal_line
from fal_notebook.deploy_progress import Progress, follow
from fal_notebook.deploy_steps import in_one_line
from fal_notebook.display import DeployView
from fal_notebook.exceptions import DeployError, GatewayUnavailableError
from fal_notebook.payload import capture
from fal_notebook.terminal_line import TerminalLine

AT = 1000.0
RUN = "Step 2/5 : RUN for i in 1 2; do echo $i; done"


@pytest.fixture
def building(monkeypatch: pytest.MonkeyPatch) -> Progress:
    """A deploy whose second step has been running for four seconds."""
    monkeypatch.setattr(time, "time", lambda: AT + 6)
    progress = Progress("me", "app", capture(len), url="http://h", number=3)
    progress.step({"step": "building", "message": "Step 1/5 : FROM python"}, AT)
    progress.step({"step": "building", "message": RUN}, AT + 1.5)
    progress.detail({"message": "tick <4>\x1b[2K\r", "part": None})
    return progress


def test_the_running_step_has_a_bar_its_time_and_what_it_said_last(building: Progress) -> None:
    shown = repr(DeployView(building))
    assert "building: Step 1/5 : FROM python (1.5 s)" in shown
    assert f"building: {RUN}\n    ████░░░░░░░░░░░░░░░░ 4 s  tick <4>" in shown
    page = DeployView(building)._repr_html_()
    assert "████░" in page
    assert " 4 s  tick &lt;4&gt;" in page


def test_a_pull_has_a_bar_of_what_is_there(building: Progress) -> None:
    building.step({"step": "building", "message": "pulling a"}, AT)
    building.detail({"message": "1 of 2 layers, 3.0 of 4.0 MB", "part": 0.75})
    expected = f"pulling a\n    {'█' * 15}░░░░░ 6 s  1 of 2 layers, 3.0 of 4.0 MB"
    assert expected in repr(DeployView(building))


def test_a_step_that_is_one_of_none_has_its_time_alone(building: Progress) -> None:
    building.step({"step": "starting", "message": "runner"}, AT - 120)
    assert repr(DeployView(building)).endswith("starting: runner\n    2 min 06 s")


async def test_who_follows_is_told_each_second_while_nothing_comes(
    building: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deploy_progress, "TICK", 0.01)
    reply = {"owner": "me", "app": "app", "since": 0, "revision": "r", "up_to_date": False}
    accepted: Future[dict[str, Any]] = Future()
    accepted.set_result(reply)
    ended, ticks = asyncio.Event(), list[int]()

    class Silent:
        async def events(self, *_: Any) -> Any:
            await ended.wait()
            data = {"revision": "r", "step": "active", "message": "url"}
            yield {"kind": "deploy", "at": AT, "data": data}

    def on_change() -> None:
        ticks.append(1)
        if len(ticks) == 3:
            ended.set()

    building.on_change = on_change
    await asyncio.wait_for(follow(Silent(), building, accepted, None), 10)  # type: ignore[arg-type]
    assert building.state == "active"
    told = len(ticks)
    await asyncio.sleep(0.05)
    assert len(ticks) == told


async def test_a_failure_is_told_also_when_nothing_explains_it(building: Progress) -> None:
    reply = {"owner": "me", "app": "app", "since": 0, "revision": "r", "up_to_date": False}
    accepted: Future[dict[str, Any]] = Future()
    accepted.set_result(reply)
    told = list[str]()
    building.on_change = lambda: told.append(f"{building.state}: {building.error}")

    class EndsThen:
        async def events(self, *_: Any) -> Any:
            data = {"revision": "r", "step": "failed", "message": "no such thing"}
            yield {"kind": "deploy", "at": AT, "data": data}

        async def status(self, *_: Any) -> Any:
            raise GatewayUnavailableError("it has ended")

    with pytest.raises(DeployError, match="app: no such thing"):
        await follow(EndsThen(), building, accepted, None)  # type: ignore[arg-type]
    assert told == ["failed: no such thing"]


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_one_line_that_is_written_anew(
    building: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(terminal_line, "_columns", lambda: 80)
    line = TerminalLine()
    line.update()
    assert screen.getvalue() == ""
    line.follow(building)
    line.update()
    line.end()
    assert "\n" not in screen.getvalue()
    first, second, last = screen.getvalue().split("\r")[1:]
    assert first == second
    assert first.startswith("app: ████░░░░░░░░░░░░░░░░ 4 s  building: Step 2/5 : RUN")
    assert first.removesuffix("\x1b[K").endswith("tick <4>")
    assert len(first.removesuffix("\x1b[K")) < 80
    assert last == "\x1b[K"


def test_a_narrow_terminal_shows_words_rather_than_a_bar(building: Progress) -> None:
    assert in_one_line(building.steps[-1], 40) == "4 s  building: Step 2/5 : RUN…  tick <4>"


def test_elsewhere_each_step_is_a_line_as_it_begins(building: Progress, capsys) -> None:
    line = TerminalLine()
    line.follow(building)
    line.update()
    building.step({"step": "starting", "message": "runner"}, AT + 6)
    line.update()
    line.end()
    told = ["building: Step 1/5 : FROM python", f"building: {RUN}", "starting: runner"]
    assert capsys.readouterr().out.splitlines() == [f"app: {text}" for text in told]


def test_above_a_prompt_only_steps_that_take_long_are_told(building: Progress, capsys) -> None:
    building.step({"step": "starting", "message": "runner"}, AT + 6)
    line = TerminalLine(at_prompt=True)
    line.follow(building)
    line.update()
    told = ["building: Step 1/5 : FROM python", f"building: {RUN}"]
    assert capsys.readouterr().out.splitlines() == [f"app: {text}" for text in told]
