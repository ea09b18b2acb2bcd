"""Runners as containers of a Docker engine on this machine; their images are built there too."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from fal_notebook import image, settings
from fal_notebook.backends import usage
from fal_notebook.backends.base import BuildOrder, Placement, Progress, Started
from fal_notebook.backends.bundle import write_compiled
from fal_notebook.backends.containers import RUNNER, STATE, Containers
from fal_notebook.backends.engine import CALLS, Engine, Streams
from fal_notebook.backends.environments import ensure_runner_libraries
from fal_notebook.backends.limits import DATA, UMASK, ending, limits
from fal_notebook.exceptions import BuildError, EngineError
from fal_notebook.runner.spec import RunnerSpec

# The image that others are made from (setting docker_base).
BASE = "python:{python}-slim"
# In its container a runner listens here, or there if a server of the user's own does.
PORT, OTHER_PORT = 8080, 8081

T = TypeVar("T")
_LOG = logging.getLogger(__name__)


class DockerBackend:
    """Implements `backends.base.Backend`; nothing is asked of an engine before it is needed.

    Parameters
    ----------
    state : Path
        The gateway's state folder.
    on_return : callable
        Called when an engine that was lost answers again.
    """

    def __init__(self, state: Path, on_return: Callable[[], None] = lambda: None) -> None:
        self._state = state
        self._label = hashlib.sha256(str(state).encode()).hexdigest()[:16]
        self._engine = Engine()
        self._containers = Containers(self._engine, self._label, self._returned)
        self._threads = ThreadPoolExecutor(CALLS, "fal-docker")
        self._usage = usage.Usage(self._engine, self._threads)
        self._building: dict[str, asyncio.Lock] = {}
        self._bridge = ""
        self._on_return = on_return
        self._loop: asyncio.AbstractEventLoop | None = None

    async def _call(self, function: Callable[..., T], *arguments: Any, **named: Any) -> T:
        loop = self._loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, lambda: function(*arguments, **named))

    def _returned(self) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._on_return)

    def inherited(self) -> dict[str, str]:
        """Return nothing: the image says what surrounds a runner."""
        return {}

    async def take_up(self, runners: Iterable[tuple[str, dict[str, Any], Path]]) -> None:
        """Know the runners of an earlier gateway again: id, process and log of each.

        Without an engine they count as ended, until it answers; others of this state folder that
        are left over are removed.
        """
        for runner, process, log in runners:
            self._containers.expect(runner)
            if process:
                self._containers.add(process["container"], runner, str(log))
        try:
            await self._call(self._containers.look)
        except BuildError as error:
            _LOG.warning("%s", error)
        self._containers.watch()

    async def gateway_host(self) -> str:
        """Return the address of this machine on the containers' network."""
        if not self._bridge:
            self._bridge = await self._call(self._engine.bridge_address)
        return self._bridge

    # --- images ------------------------------------------------------------------------------
    async def build(self, order: BuildOrder, progress: Progress) -> dict[str, str]:
        """Build the image of an environment, unless it is there, and that of the payload."""
        manifest, options, payload = order.manifest, order.options, order.payload
        base = settings.setting("docker_base", BASE).format(python=manifest["python"])
        base_id = await self._base(base, progress)
        (self._state / "docker").touch()  # the next gateway looks for what is left
        libraries = await ensure_runner_libraries(
            self._state, manifest["interpreter"], manifest["python"], progress
        )
        bundle = await asyncio.to_thread(
            write_compiled, self._state, manifest["interpreter"], manifest["python"]
        )
        shared = image.environment(
            base,
            base_id,
            _requirements(options, manifest),
            image.Tree(libraries, f"{libraries.parent.name}/{libraries.name}"),
            image.Tree(bundle, bundle.name),
        )
        await self._ensure(shared, progress, anew=bool(options.get("force")))
        own = image.app(shared.tag, image.Tree(payload, payload.name))
        await self._ensure(own, progress)
        # An image outlives this version of the package, so it says itself where things are.
        return {"image": own.tag, "runner": image.RUNNER, "libraries": image.LIBRARIES}

    async def _base(self, name: str, progress: Progress) -> str:
        found = await self._call(self._engine.image_id, name)
        if found is None:
            await self._call(self._engine.pull, name, _in_loop(progress))
            found = await self._call(self._engine.image_id, name)
        return found or ""

    async def _ensure(self, recipe: image.Recipe, progress: Progress, anew: bool = False) -> None:
        """Build an image that is not there; a cancelled build is broken off."""
        async with self._building.setdefault(recipe.tag, asyncio.Lock()):
            there = await self._call(self._engine.image_id, recipe.tag)
            if there and not anew:
                return
            streams = Streams()
            build = asyncio.ensure_future(
                self._call(self._engine.build, recipe, _in_loop(progress), streams, anew)
            )
            try:
                await asyncio.shield(build)
            except asyncio.CancelledError:
                streams.close()
                with contextlib.suppress(BuildError):
                    await build
                raise

    # --- runners -----------------------------------------------------------------------------
    async def start(
        self, spec: RunnerSpec, environment: dict[str, str], placement: Placement
    ) -> Started:
        """Create and start a container; its runner reads what it has to know from its input."""
        self._containers.expect(spec.runner_id)
        try:
            return await self._call(self._start, spec, environment, placement)
        except BuildError:
            with contextlib.suppress(BuildError):
                await self._call(self._engine.remove, _name(spec.runner_id))
            self._containers.forget(spec.runner_id)
            raise

    def _start(
        self, spec: RunnerSpec, environment: dict[str, str], placement: Placement
    ) -> Started:
        self._containers.watch()
        data = spec.environment["FAL_DATA_DIR"]
        container = self._engine.create(
            _name(spec.runner_id),
            environment["image"],
            [
                "python3",
                environment["runner"],
                "contained",
                "--libraries",
                environment["libraries"],
            ],
            labels=self._labels(spec.runner_id, placement),
            limits=limits(placement, data, os.stat(data).st_gid),
        )
        self._containers.add(container, spec.runner_id, spec.log, placement.machine.memory_mb)
        told = inside(spec).to_json().encode() + b"\n"
        about = self._engine.start(container, told)
        self._containers.read(container)
        address = about["NetworkSettings"]["IPAddress"]
        process = {
            "target": "docker",
            "container": container,
            "started": about["State"]["StartedAt"],
            "memory_mb": placement.machine.memory_mb,
        }
        return Started(f"tcp:{address}:{port_of(spec)}" if address else "", process)

    def _labels(self, runner: str, placement: Placement) -> dict[str, str]:
        return {
            STATE: self._label,
            RUNNER: runner,
            "fal-notebook.owner": placement.owner,
            "fal-notebook.app": placement.app,
            "fal-notebook.revision": placement.revision,
        }

    async def stop(self, process: dict[str, Any], runner_id: str) -> None:
        """Send SIGTERM to the runner, by the container's init."""
        with contextlib.suppress(EngineError):  # it is killed when its grace is spent
            await self._call(self._engine.signal, _name(runner_id), "SIGTERM")

    async def kill(self, process: dict[str, Any], runner_id: str) -> str:
        """Kill and remove the container; one that no engine ends now is removed later."""
        try:
            return await self._call(self._kill, process, _name(runner_id))
        except EngineError as error:
            _LOG.warning("the container of runner %s is left for later: %s", runner_id, error)
            return ""
        finally:
            self._containers.forget(runner_id)

    def _kill(self, process: dict[str, Any], name: str) -> str:
        if (about := self._engine.inspect(name)) is None:
            return ""
        if about["State"]["Running"]:
            self._engine.signal(name, "SIGKILL")
            self._engine.wait(name)
            about = self._engine.inspect(name) or about
        self._containers.read_to_end(about["Id"])
        seen = self._containers.get(about["Id"])
        out_of_memory = about["State"]["OOMKilled"] or (seen is not None and seen.out_of_memory)
        self._engine.remove(name)
        self._usage.forget(about["Id"])
        return ending(about["State"]["ExitCode"], out_of_memory, process.get("memory_mb", 0))

    def alive(self, process: dict[str, Any]) -> bool:
        """Say what the engine's events said last."""
        seen = self._containers.get(process.get("container", ""))
        return seen is not None and seen.running

    def stats(self, process: dict[str, Any]) -> dict[str, float]:
        """Return the last reading, and have a new one made; empty before the first."""
        return self._usage.of(process["container"]) if self.alive(process) else {}

    async def close(self) -> None:
        """Stop following the engine."""
        await asyncio.to_thread(self._containers.close)
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._engine.close()


def _name(runner_id: str) -> str:
    return f"fal-{runner_id}"


def _requirements(options: Mapping[str, Any], manifest: Mapping[str, Any]) -> list[list[str]]:
    """Return the layers that were asked for, or else what the code imports."""
    given = options.get("requirements")
    layers = manifest.get("distributions") if given is None else given
    layers = layers or []
    if layers and isinstance(layers[0], str):
        layers = [layers]
    for line in (line for layer in layers for line in layer):
        if line.startswith(("/", "file:")) or "@ file:" in line:
            raise BuildError(
                f"{line} lies on this machine and cannot be put into an image yet; give a version "
                "of an index, or deploy with target=local"
            )
    return [list(layer) for layer in layers if layer]


def port_of(spec: RunnerSpec) -> int:
    """Return the port on which a runner itself listens in its container."""
    return OTHER_PORT if spec.exposed_port == PORT else PORT


def inside(spec: RunnerSpec) -> RunnerSpec:
    """Return what a runner is told whose machine is a container."""
    data = spec.environment["FAL_DATA_DIR"]
    changed = {
        name: DATA + value.removeprefix(data)
        for name, value in spec.environment.items()
        if name in ("FAL_DATA_DIR", "HF_HOME") and value.startswith(data)
    }
    return replace(
        spec,
        address=f"tcp:0.0.0.0:{port_of(spec)}",
        payload=image.PAYLOAD,
        log="",
        folder="",
        umask=UMASK,
        environment={**spec.environment, **changed},
    )


def _in_loop(progress: Progress) -> Progress:
    """Return a callable for other threads that has `progress` called on the event loop."""
    loop = asyncio.get_running_loop()

    def tell(line: str) -> None:
        loop.call_soon_threadsafe(progress, line)

    return tell
