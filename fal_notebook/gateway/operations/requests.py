"""Find a request by a part of its id: of the queue, of the errors, or by the lines it wrote."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from fal_notebook.exceptions import NotFoundError, OptionError
from fal_notebook.gateway.gateway import Gateway
from fal_notebook.gateway.logs.lines import Wanted
from fal_notebook.gateway.logs.reader import LogReader
from fal_notebook.gateway.operations.apps import find as find_app
from fal_notebook.gateway.operations.apps import past_runners
from fal_notebook.gateway.store import ErrorGroup, RunnerRow

# So many lines are looked at in one go.
_LINES = 1000


async def find(gateway: Gateway, owner: str, name: str, part: str) -> dict[str, str]:
    """Return the ``id`` of the only request of an app that begins or ends with `part`.

    Raises
    ------
    NotFoundError
        When there is none; a direct request is known by its lines and errors only.
    OptionError
        When there are several.
    """
    find_app(gateway, owner, name)
    ids = await gateway.queue.records.ids(owner, name, part)
    ids |= {group.request for group in failed(gateway, owner, name, part)}
    if part not in ids and len(ids) < 2:
        runners = past_runners(gateway, owner, name)
        ids |= await asyncio.to_thread(_in_logs, gateway.state, part, runners)
    if not ids:
        raise NotFoundError(
            f"no request {part} of {owner}/{name} is known, or its lines are not kept any more; "
            f"'%fal logs {name}' shows the last 8 characters of each request's id"
        )
    return {"id": the_only(ids, part)}


def the_only(ids: set[str], part: str) -> str:
    """Return the one id that was found, or that is exactly what was asked for."""
    if part in ids:
        return part
    if len(ids) > 1:
        raise OptionError(f"{part} is a part of several requests' ids; write more of one")
    return next(iter(ids))


def failed(gateway: Gateway, owner: str, name: str, part: str) -> list[ErrorGroup]:
    """Return the groups whose sample is such a request, the last seen first."""
    gateway.errors.write()
    where = (
        "owner = ? AND app = ? AND (substr(request, 1, ?) = ? OR substr(request, ?) = ?) "
        "ORDER BY last_seen DESC"
    )
    size = len(part)
    return gateway.store.select(ErrorGroup, where, owner, name, size, part, -size, part)


def _in_logs(state: Path, part: str, rows: Sequence[RunnerRow]) -> set[str]:
    """Return the ids among all lines that are kept; two are enough to know that it is not one."""
    reader, ids = LogReader(state, Wanted(part=part)), set[str]()
    reader.more = True
    while reader.more and len(ids) < 2 and part not in ids:
        ids.update(str(line["request"]) for line in reader.lines(rows, _LINES))
    return ids
