"""What becomes of a deploy: its steps, how it ended and, where it failed, what helps."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from fal_notebook.client import Client
from fal_notebook.deploy_steps import Step, printable
from fal_notebook.exceptions import (
    DeployError,
    FalNotebookError,
    GatewayError,
    GatewayUnavailableError,
)
from fal_notebook.lacking_packages import advice
from fal_notebook.payload import Payload

# Of a failed runner, as many of its last lines are shown.
LOG_LINES = 50
# So often who shows a deploy is called while nothing comes: its time counts up (seconds).
TICK = 1.0


@dataclass
class Progress:
    """What a deploy shows: the app, its steps so far, and how it ended.

    `state` is deploying, up to date, active, failed or cancelled; when it did not succeed,
    `still_runs` says whether an earlier revision answers. `on_change` is called after each change
    and each second, from a worker thread. `packages` is what an image got because the code imports
    it; `own_image` says that it is the user's. `refused_by` is the registry that refused its
    credentials, `gateway` the id of the gateway that took it.
    """

    owner: str
    name: str
    payload: Payload
    state: str = "deploying"
    still_runs: bool = False
    url: str = ""
    gateway: str = ""
    number: int = 0
    steps: list[Step] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    packages: list[str] = field(default_factory=list)
    own_image: bool = False
    inherited: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    log: list[str] = field(default_factory=list)
    refused_by: str = ""
    on_change: Callable[[], None] = lambda: None

    def accepted(self, reply: Mapping[str, Any]) -> None:
        """Take the gateway's answer."""
        self.url, self.number = reply["url"], reply["number"]
        self.gateway = reply["gateway"]
        self.inherited = reply["inherited"]
        self.error, self.log, self.refused_by = "", [], ""
        self.notices += reply["notices"]
        self.state = "up to date" if reply["up_to_date"] else "deploying"
        self.on_change()

    def step(self, data: Mapping[str, Any], at: float | None = None) -> None:
        """Take one event of the deploy, which happened then; by default now.

        A failure is not told yet: it may be explained, or mended with newer credentials.
        """
        if data["step"] == "failed":
            self.refused_by = data.get("registry", "")
            self.ended(data["message"], data.get("log"), data.get("cancelled", False))
            return
        if data["step"] == "note":
            self.notices.append(data["message"])
            self.on_change()
            return
        self.log = []
        if data["step"] == "active":
            self.state = "active"
        began = time.time() if at is None else at
        if self.steps:
            self.steps[-1].ended = began
        self.steps.append(Step(f"{data['step']}: {printable(data['message'])}", began))
        self.on_change()

    def detail(self, data: Mapping[str, Any]) -> None:
        """Take what the step that runs said last, of a start its last lines, and how far it is."""
        self.log = list(data.get("log", ()))
        if self.steps:
            self.steps[-1].said, self.steps[-1].part = printable(data["message"]), data["part"]
            self.on_change()

    def ended(self, reason: str, log: list[str] | None = None, cancelled: bool = False) -> None:
        """Take the reason why the deploy ended without success, which is not told yet."""
        self.state, self.error = "cancelled" if cancelled else "failed", reason
        self.log = list(log) if log and any(log) else []


async def follow(
    client: Client,
    progress: Progress,
    accepted: Future[dict[str, Any]],
    renew: Callable[[], Awaitable[dict[str, Any] | None]],
) -> None:
    """Follow a deploy to its end; `renew` deploys it again when credentials were too old.

    Raises
    ------
    DeployError
        With the reason and the last lines that the runner wrote.
    """
    try:
        reply = await asyncio.wrap_future(accepted)
    except FalNotebookError as error:
        progress.ended(str(error))
        progress.on_change()
        raise
    if reply["up_to_date"]:
        return
    try:
        await _until_ended(client, progress, reply)
        if progress.refused_by and (renewed := await renew()):
            await _until_ended(client, progress, renewed)
        if progress.state in ("failed", "cancelled"):
            await _explain(client, progress)
    except GatewayUnavailableError:
        if progress.state == "deploying":
            progress.ended("the gateway stopped during the deploy; deploy again")
    except GatewayError as error:
        progress.ended(str(error))
    if progress.state in ("failed", "cancelled"):
        progress.on_change()
        reason = f"{progress.name}: {progress.error}"
        lines = [reason, *progress.log[-LOG_LINES:]]
        raise DeployError("\n".join(lines), still_runs=progress.still_runs)


async def _until_ended(client: Client, progress: Progress, reply: Mapping[str, Any]) -> None:
    ticking = asyncio.create_task(_tick(progress))
    try:
        async for event in client.events(reply["owner"], reply["app"], reply["since"]):
            if event["data"].get("revision") != reply["revision"]:
                continue
            if event["kind"] == "deploy":
                progress.step(event["data"], event["at"])
            elif event["kind"] == "detail":
                progress.detail(event["data"])
            if progress.state != "deploying":
                return
    finally:
        ticking.cancel()


async def _tick(progress: Progress) -> None:
    while True:
        await asyncio.sleep(TICK)
        progress.on_change()


async def _explain(client: Client, progress: Progress) -> None:
    """Add to a failure what helps, and which revision still answers: no handle calls old code."""
    lacking = re.search(r"No module named '(\w+)", progress.error)
    hints = [w for w in progress.payload.warnings if lacking and f"`{lacking[1]}`" in w]
    if helps := advice(progress.error, progress.own_image):
        hints.insert(0, helps)
        progress.log = []  # where an import stands in our code helps nobody
    with suppress(GatewayError):  # nothing runs
        running = await client.status(progress.owner, progress.name)
        progress.still_runs = running["number"] != progress.number
        if progress.still_runs:
            hints.append(_what_stays(progress, running))
    if progress.state == "failed":
        reason = progress.error.removesuffix(".") if hints else progress.error
        progress.error = "; ".join([reason, *hints])


def _what_stays(progress: Progress, running: Mapping[str, Any]) -> str:
    stays = f"revision {running['number']} still"
    if running["crash_backoff"]:
        return f"{stays} has the URL, but its runners fail to start (CRASH_BACKOFF)"
    answers = f"{stays} answers at {running['url']}"
    no_function = progress.payload.manifest.get("kind") in (None, "app", "sdk")
    if no_function or running["options"]["exposed_port"] is not None:
        return answers
    return f"{answers}, call it as fal_notebook.Handle({progress.owner!r}, {progress.name!r})(…)"
