"""What a deploy does beside: free a server's port or an app's GPUs, ask for a schema, tell."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from fal_notebook.gateway.fleet import Fleet, Runner
from fal_notebook.gateway.gpus import Gpus
from fal_notebook.gateway.store import Revision
from fal_notebook.gateway.upstream import UpstreamError

# How long a server may take to say what it is, and how much of that is read.
TIMEOUT = 5.0
LARGEST = 8 * 1024 * 1024
# In a schema nothing stands deeper; what stores and tells it goes through it by recursion.
DEEPEST = 100


async def free_port(fleet: Fleet, revision: Revision, stop: Callable[[Runner, str], None]) -> None:
    """End the runners that hold the fixed port which the new revision's server may want.

    Until the deploy has ended no other is started; who calls meanwhile waits.
    """
    before = fleet.revision
    port = revision.options["exposed_port"]
    held = before is not None and before.manifest.get("fixed_port")
    if before is None or not held or before.options["exposed_port"] != port:
        return
    await _end_runners(fleet, stop, f"revision {revision.number} needs its port {port}")


async def free_gpus(
    fleet: Fleet, revision: Revision, gpus: Gpus, stop: Callable[[Runner, str], None]
) -> None:
    """End the app's own runners if the new revision's would wait for their GPUs, as `free_port`."""
    if revision.machine["gpus"] > len(gpus.free()) and any(map(gpus.of, fleet.runners)):
        await _end_runners(fleet, stop, f"revision {revision.number} needs its GPUs")


async def make_room(fleet: Fleet, revision: Revision, stop: Callable[[Runner, str], None]) -> None:
    """End all runners of the app first if its strategy is ``recreate``, as `free_port`."""
    if revision.options["deployment_strategy"] == "recreate":
        await _end_runners(fleet, stop, f"revision {revision.number} takes its place")


async def _end_runners(fleet: Fleet, stop: Callable[[Runner, str], None], cause: str) -> None:
    fleet.scaling = replace(
        fleet.scaling,
        min_concurrency=0,
        max_concurrency=0,
        concurrency_buffer=0,
        concurrency_buffer_perc=0,
    )
    runners = list(fleet.runners.values())
    for runner in runners:
        stop(runner, cause)
    await asyncio.gather(*(runner.ended.wait() for runner in runners))


async def openapi_of(runner: Runner) -> dict[str, Any]:
    """Return what the server answers at ``/openapi.json``, {} when that is no schema."""
    if runner.direct is None:
        return {}
    with contextlib.suppress(UpstreamError, asyncio.TimeoutError, ValueError, RecursionError):
        asked = runner.direct.get(b"/openapi.json", b"application/json", LARGEST)
        return await asyncio.to_thread(_schema, await asyncio.wait_for(asked, TIMEOUT))
    return {}


def _schema(content: bytes) -> dict[str, Any]:
    found = json.loads(content)
    is_schema = isinstance(found, dict) and "openapi" in found and not _is_deeper(found, DEEPEST)
    json.dumps(found, ensure_ascii=False, allow_nan=False).encode()  # it can be told to others
    return found if is_schema else {}


def _is_deeper(value: Any, levels: int) -> bool:
    """Say whether lists and objects stand in each other in more levels."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(levels == 0 or _is_deeper(part, levels - 1) for part in parts)


def about(revision: Revision, runner: Runner) -> Iterator[str]:
    """Yield what the user should know; a fixed port is noted in the revision."""
    if runner.direct is None:
        return
    port = revision.options["exposed_port"]
    if runner.fixed_port:
        revision.manifest["fixed_port"] = True
        yield (
            f"the server listens on port {port} whatever $PORT says, so there is one runner at a "
            "time on this machine; let it listen on {port} or $PORT for more"
        )
    if not revision.openapi:
        yield (
            "no OpenAPI: the app works, but nobody is shown what it takes; serve /openapi.json, "
            f"JSON of at most {DEEPEST} levels and {LARGEST >> 20} MiB within {TIMEOUT:g} s, or "
            'give metadata={"openapi": …}'
        )
