"""Runners as processes on this machine, forked from a zygote where that is safe."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

import psutil

from fal_notebook.backends.base import Progress, Started
from fal_notebook.backends.bundle import write_bundle
from fal_notebook.backends.environments import (
    EnvironmentSpec,
    ensure,
    ensure_runner_libraries,
)
from fal_notebook.backends.zygotes import Zygotes, clean_environment, spawn
from fal_notebook.runner.spec import RunnerSpec

# macOS' system libraries start threads on their own, so a forked child may not use them.
FORK_IS_SAFE = sys.platform == "linux"


class LocalBackend:
    """Implements `backends.base.Backend` with processes of the gateway's user."""

    def __init__(self, state: Path, sockets: Path, fork: bool = FORK_IS_SAFE) -> None:
        self._state = state
        self._sockets = sockets
        self._fork = fork
        self._bundle = write_bundle(state)
        self._zygotes = Zygotes(self._bundle, state / "gateway.log")

    @property
    def address_folder(self) -> Path:
        """Folder of the runners' sockets."""
        return self._sockets

    def inherited(self) -> dict[str, str]:
        """Return PATH, HOME and the like from the gateway's environment."""
        return clean_environment()

    async def warm(self, interpreter: str) -> None:
        """Have a zygote ready for an interpreter before its first runner is wanted."""
        if self._fork:
            await self._zygotes.get({"python": interpreter, "libraries": ""})

    async def build(
        self, manifest: dict[str, Any], options: dict[str, Any], progress: Progress
    ) -> dict[str, str]:
        """Use the kernel's interpreter, or an environment made by uv for the requirements."""
        interpreter, minor = manifest["interpreter"], manifest["python"]
        layers = options.get("requirements")
        if not layers:
            return {"python": interpreter, "libraries": ""}
        if isinstance(layers[0], str):
            layers = [layers]
        spec = EnvironmentSpec(
            interpreter=interpreter,
            python_version=minor,
            requirements=tuple(tuple(layer) for layer in layers),
            compile_bytecode=bool(options.get("compile_bytecode")),
        )
        python = await ensure(self._state, spec, progress, force=bool(options.get("force")))
        libraries = await ensure_runner_libraries(self._state, interpreter, minor, progress)
        return {"python": str(python), "libraries": str(libraries)}

    async def start(self, spec: RunnerSpec, environment: dict[str, str]) -> Started:
        """Fork the runner from its environment's zygote, or spawn it."""
        if self._fork:
            pid = await (await self._zygotes.get(environment)).fork(spec)
        else:
            pid = await spawn(self._bundle, environment, spec)
        return Started(f"unix:{spec.socket}", {"pid": pid, "created": _created(pid)})

    async def stop(self, process: dict[str, Any], runner_id: str) -> None:
        """Send SIGTERM to the runner itself; what it started is its own to end."""
        if self.alive(process):
            os.kill(process["pid"], signal.SIGTERM)

    async def kill(self, process: dict[str, Any], runner_id: str) -> None:
        """Kill the runner's process group, and what left the group but bears its name."""
        await asyncio.get_running_loop().run_in_executor(None, _sweep, process["pid"], runner_id)

    def alive(self, process: dict[str, Any]) -> bool:
        """Compare the start time too: process ids are reused."""
        return bool(process) and _created(process["pid"]) == process["created"]

    def stats(self, process: dict[str, Any]) -> dict[str, float]:
        """Return CPU and memory of the runner's own process."""
        try:
            found = psutil.Process(process["pid"])
            return {
                "cpu_percent": found.cpu_percent(),
                "memory_bytes": float(found.memory_info().rss),
            }
        except psutil.Error:
            return {}

    async def close(self) -> None:
        """End the zygotes."""
        await self._zygotes.close()


def _created(pid: int) -> float:
    """Return when the process was started (unix seconds), 0 when there is none or a zombie."""
    try:
        found = psutil.Process(pid)
        return 0.0 if found.status() == psutil.STATUS_ZOMBIE else float(found.create_time())
    except psutil.Error:
        return 0.0


def _sweep(group: int, runner_id: str) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)
    for process in psutil.process_iter():
        try:
            if process.environ().get("FAL_RUNNER_ID") == runner_id:
                process.kill()
        except psutil.Error:
            continue
