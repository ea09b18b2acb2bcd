"""Bring an earlier revision back, or one of another environment: no code of here, else a deploy."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any

from fal_notebook import sync
from fal_notebook.client import Client
from fal_notebook.deploy_progress import Progress, follow
from fal_notebook.deploying import Deployment
from fal_notebook.envs import MAIN, name_in, name_in_main
from fal_notebook.handle import Handle, shared_client
from fal_notebook.payload import Payload

Ask = Callable[[Client], Coroutine[Any, Any, dict[str, Any]]]


def rollback(
    owner: str,
    name: str,
    revision: int | None = None,
    on_change: Callable[[], None] = lambda: None,
) -> Deployment:
    """Start the rollout of an earlier revision of an app; return when that is accepted.

    Parameters
    ----------
    revision : int, optional
        Its number; by default the last that served before the active one.
    on_change : callable
        Called whenever there is something new to show, from a worker thread too.

    Raises
    ------
    GatewayError, OptionError
        When it is refused.
    """
    return _started(owner, name, lambda client: client.rollback(owner, name, revision), on_change)


def promote(
    owner: str,
    name: str,
    source: str,
    to: str = MAIN,
    on_change: Callable[[], None] = lambda: None,
) -> Deployment:
    """Start the rollout of what serves an app in the environment `source` in another, as above.

    Parameters
    ----------
    name : str
        The app's name in main, or in `source`.
    """
    app = name_in(name_in_main(name, source), to)
    return _started(owner, app, lambda client: client.promote(owner, name, source, to), on_change)


def _started(owner: str, name: str, ask: Ask, on_change: Callable[[], None]) -> Deployment:
    client = shared_client()
    progress = Progress(owner, name, Payload(b"", "", {}, (), ()), on_change=on_change)

    accepted = Future[dict[str, Any]]()
    accepted.set_result(sync.wait(ask(client)))
    progress.accepted(accepted.result())
    deployed = sync.submit(follow(client, progress, accepted, _no_renewal))
    return Deployment(Handle(owner, name, deployed=deployed), progress, accepted)


async def _no_renewal() -> None:
    """Ask for no password: only a deploy from a kernel has what gives one."""
