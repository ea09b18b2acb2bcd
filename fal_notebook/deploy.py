"""Deploy a function: capture it, hand it to the gateway, follow what becomes of it."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from fal_notebook import settings, sync
from fal_notebook.client import Client
from fal_notebook.exceptions import DeployError, OptionError, PayloadMissingError
from fal_notebook.handle import Handle, shared_client
from fal_notebook.options import (
    CellOptions,
    Options,
    app_name,
    explicit,
    option_help,
    split_options,
)
from fal_notebook.payload import Payload, capture


@dataclass
class Progress:
    """What a deploy shows: the app, its steps so far, and how it ended.

    `state` is deploying, up to date, active or failed; `on_change` is called after each change,
    from a worker thread.
    """

    owner: str
    name: str
    payload: Payload
    state: str = "deploying"
    url: str = ""
    number: int = 0
    steps: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    inherited: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    log: list[str] = field(default_factory=list)
    on_change: Callable[[], None] = lambda: None

    def accepted(self, reply: Mapping[str, Any]) -> None:
        """Take the gateway's answer."""
        self.url, self.number = reply["url"], reply["number"]
        self.inherited = reply["inherited"]
        self.notices += reply["notices"]
        self.state = "up to date" if reply["up_to_date"] else "deploying"
        self.on_change()

    def step(self, data: Mapping[str, Any]) -> None:
        """Take one event of the deploy."""
        if data["step"] in ("active", "failed"):
            self.state = data["step"]
        if data["step"] == "failed":
            self.error, self.log = data["message"], data.get("log", [])
        else:
            self.steps.append(f"{data['step']}: {data['message']}")
        self.on_change()


def deploy(
    function: Callable[..., Any], *, setup_function: Callable[..., Any] | None = None, **values: Any
) -> Handle:
    """Deploy a function as an app, as ``%%fal_function`` does for a cell.

    Parameters
    ----------
    function : callable
        What ``POST /`` calls.
    setup_function : callable, optional
        Runs once per runner before the first request.
    **values
        Any option of ``%%fal_function``; ``name`` defaults to the function's own.

    Returns
    -------
    Handle
        It answers at once; a call waits for the deploy. With ``wait=True`` the deploy has ended.

    Raises
    ------
    OptionError, CaptureError, ConflictError
        Before anything is sent or changed.
    DeployError
        With ``wait=True``, when the revision did not come up.
    """
    if setup_function is not None:
        values["setup_function"] = setup_function
    options, cell = split_options(values)
    handle, _ = start(function, options, cell, notebook=f"a program in {os.getcwd()}")
    return handle.wait() if cell.wait else handle


def start(
    function: Callable[..., Any],
    options: Options,
    cell: CellOptions,
    notebook: str,
    on_change: Callable[[], None] = lambda: None,
) -> tuple[Handle, Progress]:
    """Capture a function and start its deploy; return when the gateway has accepted it.

    Parameters
    ----------
    notebook : str
        Who deploys, for "the app belongs to another notebook".
    on_change : callable
        Called from a worker thread whenever there is something new to show.
    """
    _check_python(options)
    owner = cell.owner or options.team or settings.owner()
    name = app_name(options.name or function.__name__)
    variables = _variables(options)
    payload = captured(function, options, cell)
    progress = Progress(owner, name, payload, notices=_not_effective(options))
    request = {
        "name": name,
        "digest": payload.digest,
        "manifest": payload.manifest,
        "options": explicit(options),
        "variables": variables,
        "notebook": notebook,
        "takeover": cell.takeover,
        "reset_scale": cell.reset_scale,
    }
    client = shared_client()
    reply = sync.wait(_accept(client, owner, request, payload.content))
    progress.accepted(reply)
    progress.on_change = on_change
    deployed: Future[None] = sync.submit(_follow(client, reply, progress))
    return Handle(owner, name, function, deployed), progress


def captured(function: Callable[..., Any], options: Options, cell: CellOptions) -> Payload:
    """Capture a function under its options, without deploying it."""
    return capture(
        function,
        setup_function=options.setup_function,
        local_python_modules=options.local_python_modules or (),
        identity={"options": explicit(options), "variables": _variables(options)},
        allow_secret=cell.allow_secret,
    )


async def _accept(
    client: Client, owner: str, request: dict[str, Any], content: bytes
) -> dict[str, Any]:
    """Ask for the deploy; the payload is sent only when the gateway lacks it."""
    request = {**request, "payload": hashlib.sha256(content).hexdigest()}
    try:
        return await client.deploy(owner, request)
    except PayloadMissingError:
        await client.upload(content)
        return await client.deploy(owner, request)


async def _follow(client: Client, reply: Mapping[str, Any], progress: Progress) -> None:
    """Follow the deploy's events to its end.

    Raises
    ------
    DeployError
        With the reason and the last lines that the runner wrote.
    """
    if reply["up_to_date"]:
        return
    async for event in client.events(reply["owner"], reply["app"], reply["since"]):
        data = event["data"]
        if event["kind"] != "deploy" or data["revision"] != reply["revision"]:
            continue
        progress.step(data)
        if progress.state == "active":
            return
        if progress.state == "failed":
            raise DeployError(
                "\n".join([f"{progress.name}: {progress.error}", *progress.log[-20:]])
            )
    progress.step({"step": "failed", "message": "the gateway stopped during the deploy"})
    raise DeployError(f"{progress.name}: the gateway stopped during the deploy; run the cell again")


def _check_python(options: Options) -> None:
    here = "{}.{}".format(*sys.version_info)
    if options.python_version not in (None, here):
        raise OptionError(
            f"python_version={options.python_version} is not this kernel's {here}; code captured "
            "here runs on the same minor version only: leave it out or use a kernel of that version"
        )


def _variables(options: Options) -> dict[str, str]:
    missing = [name for name in options.pass_env or () if name not in os.environ]
    if missing:
        raise OptionError(f"pass_env names {', '.join(missing)}, not set in this kernel")
    return {name: os.environ[name] for name in options.pass_env or ()}


def _not_effective(options: Options) -> list[str]:
    later = {help.name for help in option_help() if not help.effective}
    used = sorted(later & options.model_fields_set)
    return [f"{name} is stored; it takes effect in a later release" for name in used]
