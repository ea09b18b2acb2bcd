"""Runners as processes on this machine: children of a zygote on Linux, of the gateway elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from fal_notebook.backends import children, fit
from fal_notebook.backends.base import BuildOrder, Left, Placement, Progress, Started
from fal_notebook.backends.bundle import write_bundle
from fal_notebook.backends.environments import EnvironmentSpec, ensure, installed
from fal_notebook.backends.requirement_layers import layers_of
from fal_notebook.backends.runner_libraries import ensure_runner_libraries, refuse
from fal_notebook.backends.zygotes import Zygotes, clean_environment, spawn
from fal_notebook.exceptions import BuildError
from fal_notebook.runner import keeper
from fal_notebook.runner.spec import RunnerSpec

# macOS has no child subreapers, and its libraries start threads, so that no fork is safe there.
LINUX = sys.platform == "linux"
# The kernel's PF_EXITING, among the flags of a process.
_EXITING = 0x4
# How long to wait for killed processes to be gone.
KILL_TIMEOUT = 5.0
OUT_OF_MEMORY = "SIGKILL, and since it began Linux has ended processes for want of memory"


class LocalBackend:
    """Implements `backends.base.Backend` with processes of the gateway's user.

    Parameters
    ----------
    state, sockets : Path
        The gateway's state folder, and the folder of the runners' sockets.
    fork : bool
        Whether runners are forked from a warm process, where that is safe.
    keep : bool
        Whether runners have a keeper; a fork needs one.
    """

    def __init__(self, state: Path, sockets: Path, fork: bool = LINUX, keep: bool = LINUX) -> None:
        self._state = state
        self._sockets = sockets
        self._keep = keep
        self._spawned: dict[tuple[int, float], asyncio.subprocess.Process] = {}
        self._bundle = write_bundle(state)
        log = state / "gateway.log"
        self._zygotes = Zygotes(self._bundle, log, warm=fork, on_end=self._zygote_ended)
        self._keepers: set[int] = set()
        self._adopts = False
        self._orphaned = False  # what zygotes guarded comes to this process by now
        self._ending_strays: asyncio.Task[None] | None = None

    @property
    def address_folder(self) -> Path:
        """Folder of the runners' sockets."""
        return self._sockets

    def inherited(self, environment: Mapping[str, str]) -> dict[str, str]:
        """Return PATH, HOME and the like from the gateway's environment.

        On the PATH the runner's Python, and what its packages bring, come first.
        """
        variables, python = clean_environment(), environment["python"]
        path = variables.get("PATH", os.defpath)
        if shutil.which(os.path.basename(python), path=path) != python:
            path = os.pathsep.join([os.path.dirname(python), path])
        return {**variables, "PATH": path}

    async def warm(self, interpreter: str) -> None:
        """Have a zygote ready for an interpreter before its first runner is wanted."""
        if self._keep:
            await self._zygotes.get({"python": interpreter, "libraries": ""})

    def adopt_orphans(self) -> None:
        """Take in, and end, what killed zygotes and keepers leave (Linux).

        Only for a process all of whose children are started by this package's backends.
        """
        if self._keep:
            keeper.adopt_orphans()
            self._adopts = True

    def _zygote_ended(self) -> None:
        if self._adopts:
            self._orphaned = True
            self._ending_strays = asyncio.ensure_future(self._end_strays())

    async def _end_strays(self) -> None:
        await _until(lambda: children.end_strays(self._keepers))

    async def build(self, order: BuildOrder, progress: Progress) -> dict[str, str]:
        """Use the kernel's interpreter, or an environment made by uv for the requirements."""
        try:
            return await self._environment(order.manifest, order.options, progress)
        except BuildError:
            if self._adopts:  # if somebody killed uv's keeper, what it kept came here
                await self._end_strays()
            raise

    async def _environment(
        self, manifest: dict[str, Any], options: dict[str, Any], progress: Progress
    ) -> dict[str, str]:
        interpreter, minor = manifest["interpreter"], manifest["python"]
        layers = layers_of(options, manifest)
        if not layers:
            return {"python": interpreter, "libraries": ""}
        refuse(fit.pinned(layers), minor)
        spec = EnvironmentSpec(
            interpreter=interpreter,
            python_version=minor,
            requirements=tuple(tuple(layer) for layer in layers),
            compile_bytecode=bool(options.get("compile_bytecode")),
        )
        python = await ensure(self._state, spec, progress, force=bool(options.get("force")))
        found = await asyncio.to_thread(installed, python)
        libraries = await ensure_runner_libraries(self._state, interpreter, minor, progress, found)
        return {"python": str(python), "libraries": str(libraries)}

    async def restore(
        self, environment: dict[str, str], registries: Callable[[], dict[str, Any]]
    ) -> bool:
        """Say whether the environment's Python and the runner's libraries are there."""
        needed = filter(None, (environment["python"], environment["libraries"]))
        return all(os.path.exists(path) for path in needed)

    async def start(
        self, spec: RunnerSpec, environment: dict[str, str], placement: Placement
    ) -> Started:
        """Have the environment's zygote start the runner; spawn it where there are no keepers."""
        spec = with_gpus(spec, placement.gpus)
        if self._keep:
            runner, kept_by = await self._forked(spec, environment)
            found = {"keeper": kept_by, "keeper_created": _created(kept_by), "ending": spec.ending}
        else:
            process = await spawn(self._bundle, environment, spec)
            runner, found = process.pid, {}
            self._spawned[runner, _created(runner)] = process
        found |= {"pid": runner, "created": _created(runner), "oom_kills": _oom_kills()}
        return Started(spec.address, found)

    async def _forked(self, spec: RunnerSpec, environment: dict[str, str]) -> tuple[int, int]:
        """Fork a runner; a zygote that somebody killed is replaced once."""
        zygote = await self._zygotes.get(environment)
        try:
            runner, kept_by = await zygote.fork(spec)
        except BuildError:
            zygote.drop()
            runner, kept_by = await (await self._zygotes.get(environment)).fork(spec)
        self._keepers.add(kept_by)
        return runner, kept_by

    async def stop(self, process: dict[str, Any], runner_id: str) -> None:
        """Send SIGTERM to the runner itself; what it started is its own to end."""
        if self.alive(process):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process["pid"], signal.SIGTERM)

    async def kill(self, process: dict[str, Any], runner_id: str) -> str:
        """Kill the runner's group; its keeper ends what left it, or else a search for its name."""
        if not process:
            return ""
        lived = self.alive(process) and not _is_exiting(process["pid"])
        if _lives(process.get("keeper", 0), process.get("keeper_created", 0.0)):
            self._kill_group(process)
            await _until(lambda: not _lives(process["keeper"], process["keeper_created"]))
        else:
            await asyncio.to_thread(self._sweep, process, runner_id)
        if process.get("keeper") in self._keepers:
            await self._bury(process["keeper"])
        how = await self._ending(process)
        if how != "SIGKILL":
            return how
        starved = _oom_kills() > process.get("oom_kills", math.inf)
        return "" if lived else OUT_OF_MEMORY if starved else how

    async def _bury(self, kept_by: int) -> None:
        """Forget a keeper that has ended; what one without a zygote left came here."""
        self._keepers.remove(kept_by)
        if self._orphaned:
            children.reap(kept_by)
            await self._end_strays()

    def states(
        self, process: dict[str, Any], runner_id: str
    ) -> AsyncGenerator[dict[str, Any], None] | None:
        """Say nothing: every runner has a link of its own."""
        return None

    def alive(self, process: dict[str, Any]) -> bool:
        """Compare the start time too: process ids are reused."""
        return bool(process) and _lives(process["pid"], process["created"])

    def _kill_group(self, process: dict[str, Any]) -> None:
        """Kill the runner and its group, unless the number belongs to somebody else by now."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self.alive(process):
                os.kill(process["pid"], signal.SIGKILL)  # it may not lead its group yet
            if _created(process["pid"]) in (0.0, process["created"]):
                os.killpg(process["pid"], signal.SIGKILL)

    def _sweep(self, process: dict[str, Any], runner_id: str) -> None:
        below = _children(process["pid"]) if self.alive(process) else []
        self._kill_group(process)
        for found in [*below, *psutil.process_iter()]:
            with contextlib.suppress(psutil.Error):
                if found in below or found.environ().get("FAL_RUNNER_ID") == runner_id:
                    found.kill()

    async def _ending(self, process: dict[str, Any]) -> str:
        spawned = self._spawned.pop((process["pid"], process["created"]), None)
        if spawned is not None:
            return _named(await spawned.wait())
        with contextlib.suppress(OSError, ValueError):
            return _named(int(Path(process.get("ending", "")).read_text()))
        return ""

    def stats(self, process: dict[str, Any]) -> dict[str, float]:
        """Return CPU and memory of the runner's own process."""
        try:
            found = psutil.Process(process["pid"])
            return {
                "cpu_percent": found.cpu_percent(),
                "memory_bytes": float(found.memory_info().rss),
            }
        except (psutil.Error, KeyError):  # it has ended, or has no process yet
            return {}

    async def gateway_host(self) -> str:
        """Return nothing: runners reach the gateway where everybody does."""
        return ""

    async def take_up(self, runners: Iterable[Left]) -> None:
        """Do nothing: what a process id means can be asked at any time, and keepers end strays."""

    async def close(self) -> None:
        """End the zygotes."""
        await self._zygotes.close()


def with_gpus(spec: RunnerSpec, gpus: tuple[str, ...]) -> RunnerSpec:
    """Return a spec whose runner sees its own GPUs only; as it is for one without."""
    if not gpus:
        return spec
    return replace(spec, environment={**spec.environment, "CUDA_VISIBLE_DEVICES": ",".join(gpus)})


def _created(pid: int) -> float:
    """Return when the process was started, 0 when there is none or a zombie.

    On Linux in seconds since the machine was: its unix time moves when the clock is set.
    """
    if LINUX:
        return _started(pid)
    try:
        found = psutil.Process(pid)
        return 0.0 if found.status() == psutil.STATUS_ZOMBIE else float(found.create_time())
    except (psutil.Error, ValueError):
        return 0.0


def _oom_kills() -> int:
    """Return how many processes Linux has ended for want of memory since the machine started."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def _started(pid: int) -> float:
    told = _stat(pid)
    if not told or told[0] in (b"Z", b"X"):
        return 0.0
    return int(told[19]) / os.sysconf("SC_CLK_TCK")


def _is_exiting(pid: int) -> bool:
    """Whether a process is on its way out, where that is told (Linux): its sockets close before."""
    told = _stat(pid)
    return bool(told) and bool(int(told[6]) & _EXITING)


def _stat(pid: int) -> list[bytes]:
    """Return what Linux tells of a process behind its name, nothing where there is none."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return []


def _lives(pid: int, created: float) -> bool:
    return pid > 0 and created > 0 and _created(pid) == created


def _children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


async def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + KILL_TIMEOUT
    while not condition() and time.monotonic() < deadline:
        await asyncio.sleep(0.002)


def _named(status: int) -> str:
    """Return an exit status as of `subprocess` in words."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
