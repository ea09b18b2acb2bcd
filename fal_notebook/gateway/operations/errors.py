"""Ask which requests of an app failed, grouped, and forget what is old."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fal_notebook.exceptions import NotFoundError
from fal_notebook.gateway import clock
from fal_notebook.gateway.errors import KEPT
from fal_notebook.gateway.gateway import Gateway
from fal_notebook.gateway.operations import requests
from fal_notebook.gateway.operations.apps import find
from fal_notebook.gateway.store import ErrorGroup

_ONLY_ASKED_FOR = ("traceback", "input")


def errors(gateway: Gateway, owner: str, name: str) -> list[dict[str, Any]]:
    """Return the groups of an app's failures, the last seen first, without their samples."""
    find(gateway, owner, name)
    gateway.errors.write()
    where = "owner = ? AND app = ? ORDER BY last_seen DESC"
    groups = gateway.store.select(ErrorGroup, where, owner, name)
    return [
        {key: value for key, value in asdict(group).items() if key not in _ONLY_ASKED_FOR}
        for group in groups
    ]


def error(gateway: Gateway, owner: str, name: str, request_id: str) -> dict[str, Any]:
    """Return the group whose sample is this request, with its input and traceback.

    `request_id` may be its beginning or its end.

    Raises
    ------
    NotFoundError
        When there is none.
    OptionError
        When there are several.
    """
    find(gateway, owner, name)
    groups = requests.failed(gateway, owner, name, request_id)
    if groups:
        request = requests.the_only({group.request for group in groups}, request_id)
        return asdict(next(group for group in groups if group.request == request))
    raise NotFoundError(
        f"request {request_id} is not the sample of an error of {owner}/{name}; "
        f"'%fal errors {name}' lists those that are, '%fal logs {name} --request {request_id}' "
        "shows what it wrote, where there was one"
    )


def prune(gateway: Gateway) -> None:
    """Remove groups that have not grown for a long time."""
    gateway.store.forget_errors(clock.ago(KEPT))
