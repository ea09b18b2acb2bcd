"""What the engine and this machine say of a container in which nothing is ours."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from fal_notebook.backends.containers import Containers
from fal_notebook.backends.engine import Engine
from fal_notebook.backends.engine_words import misfit
from fal_notebook.backends.limits import ending
from fal_notebook.exceptions import BuildError

_TABLES = ["cat", "/proc/net/tcp", "/proc/net/tcp6"]
Call = Callable[..., Awaitable[Any]]


class OutsideOfContainer:
    """Implements `untouched.Outside` for one container.

    Parameters
    ----------
    call : callable
        Calls a function of the engine, with what follows, in a thread.
    process : dict
        What `Backend.start` returned.
    """

    def __init__(
        self, engine: Engine, containers: Containers, call: Call, process: dict[str, Any]
    ) -> None:
        self._engine = engine
        self._containers = containers
        self._call = call
        self._process = process
        self._name = process["container"]

    def alive(self) -> bool:
        """Say what the engine's events said last."""
        seen = self._containers.get(self._name)
        return seen is not None and seen.running

    async def runs(self) -> bool:
        """Ask the engine whether it runs."""
        return bool((await self._state()).get("Running"))

    async def _state(self) -> dict[str, Any]:
        with contextlib.suppress(BuildError):  # without its engine nothing is known
            about = await self._call(self._engine.inspect, self._name)
            return dict(about["State"]) if about else {}
        return {}

    async def misfit(self) -> str:
        """Compare its image's architecture with the engine's, and look at what it printed last."""
        with contextlib.suppress(BuildError):
            return str(await self._call(self._misfit))
        return ""

    def _misfit(self) -> str:
        about = self._engine.inspect(self._name) or {}
        image = self._engine.image(about.get("Image", "")) or {}
        own = self._engine.architecture()
        return misfit(image.get("Architecture", own), own, self._engine.last_lines(self._name))

    async def table(self) -> str:
        """Have a program in the container print it, or read it here where it has none."""
        printed = ""
        with contextlib.suppress(BuildError):  # it has just ended
            printed = await self._call(self._engine.printed, self._name, _TABLES)
        if "local_address" in printed:
            return printed
        return table_of((await self._state()).get("Pid", 0), self._name)

    async def ending(self) -> str:
        """Wait for its last lines, and say how it ended."""
        state = await self._state()
        await self._call(self._containers.read_to_end, self._name)
        if "ExitCode" not in state:
            return "its container"
        seen = self._containers.get(self._name)
        out_of_memory = state.get("OOMKilled") or (seen is not None and seen.out_of_memory)
        return ending(state["ExitCode"], bool(out_of_memory), self._process.get("memory_mb", 0))


def table_of(process: int, container: str) -> str:
    """Return the table of sockets of a container's process, if it is one of this machine.

    The engine may be that of another machine: then the number is another process's, or none's.
    """
    folder = Path("/proc", str(process))
    with contextlib.suppress(OSError):
        if container in (folder / "cgroup").read_text():
            return "".join((folder / "net" / name).read_text() for name in ("tcp", "tcp6"))
    return ""
