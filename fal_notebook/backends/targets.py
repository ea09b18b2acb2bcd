"""The places where runners may live, by name: ``local`` processes and ``docker`` containers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fal_notebook.backends.base import Backend, Left
from fal_notebook.backends.local import LocalBackend

if TYPE_CHECKING:
    from fal_notebook.backends.docker import DockerBackend

LOCAL, DOCKER = "local", "docker"


class Targets:
    """Gives the backend of a target's name, or of a runner's process.

    Parameters
    ----------
    state, sockets : Path
        The gateway's state folder, and the folder of local runners' sockets.
    on_return : callable
        Called with the name of a target that could not be used and can be again.
    """

    def __init__(
        self, state: Path, sockets: Path, on_return: Callable[[str], None] = lambda target: None
    ) -> None:
        self._on_return = on_return
        self._state = state
        self.local = LocalBackend(state, sockets)
        self._docker: DockerBackend | None = None

    async def load(self, target: str) -> Backend:
        """Return a backend; the docker library is imported at its first use, in a thread."""
        if target == DOCKER and self._docker is None:
            await asyncio.to_thread(import_module, "fal_notebook.backends.docker")
        return self[target]

    def __getitem__(self, target: str) -> Backend:
        if target == LOCAL:
            return self.local
        if self._docker is None:
            from fal_notebook.backends.docker import DockerBackend

            self._docker = DockerBackend(self._state, lambda: self._on_return(DOCKER))
        return self._docker

    def of(self, process: dict[str, Any]) -> Backend:
        """Return the backend that started a process."""
        return self[process.get("target", LOCAL)]

    def stats(self, process: dict[str, Any]) -> dict[str, float]:
        """Return CPU and memory of a runner, see `Backend.stats`."""
        return self.of(process).stats(process)

    async def take_up(self, runners: Iterable[Left]) -> None:
        """Get to know what an earlier gateway left."""
        if (self._state / DOCKER).exists():  # no engine is asked where none was used
            backend = await self.load(DOCKER)
            await backend.take_up([r for r in runners if r.process.get("target") == DOCKER])

    async def close(self) -> None:
        """Release what the backends hold; runners live on."""
        await self.local.close()
        if self._docker is not None:
            await self._docker.close()
