"""Runners as containers of a Docker engine on this machine; their images are built there too."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import shlex
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from fal_notebook import image, settings
from fal_notebook.backends import untouched, usage
from fal_notebook.backends.base import BuildOrder, Left, Placement, Progress, Started
from fal_notebook.backends.containers import RETRY, RUNNER, STATE, Containers
from fal_notebook.backends.engine import CALLS, Engine
from fal_notebook.backends.images import Images
from fal_notebook.backends.limits import UMASK, ending, limits
from fal_notebook.backends.outside import OutsideOfContainer
from fal_notebook.backends.stored_images import StoredImages
from fal_notebook.exceptions import BuildError, EngineError, GatewayError
from fal_notebook.runner.log_file import LogFile
from fal_notebook.runner.spec import RunnerSpec

# In its container a runner listens here, or there if a server of the user's own does.
PORT, OTHER_PORT = 8080, 8081

# So long a gateway that starts waits for what an engine has to say of its containers (seconds).
LONGEST_LOOK = 2.0
# So long one that ends waits until its connection to an engine is closed (seconds).
LONGEST_CLOSE = 1.0

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
        self._images = Images(state, self._engine, self._call, {STATE: self._label})
        self.stored = StoredImages(self._engine, self._call, self._label)
        self._bridge = ""
        self._on_return = on_return
        self._loop: asyncio.AbstractEventLoop | None = None
        self._looking: asyncio.Task[None] | None = None

    async def _call(self, function: Callable[..., T], *arguments: Any, **named: Any) -> T:
        loop = self._loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, lambda: function(*arguments, **named))

    def _returned(self) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._on_return)

    def inherited(self, environment: Mapping[str, str]) -> dict[str, str]:
        """Return nothing: the image says what surrounds a runner."""
        return {}

    async def take_up(self, runners: Iterable[Left]) -> None:
        """Know the runners of an earlier gateway again.

        Without an engine they count as ended, until it answers; others of this state folder that
        are left over are removed.
        """
        for runner in runners:
            self._containers.expect(runner.id)
            if runner.process:
                container, memory = runner.process["container"], runner.process.get("memory_mb", 0)
                self._containers.add(container, runner.id, runner.log, memory)
        try:
            await asyncio.wait_for(self._call(self._containers.look), LONGEST_LOOK)
        except BuildError as error:
            _LOG.warning("%s", error)
        except asyncio.TimeoutError:
            _LOG.warning("the Docker engine does not answer; nobody waits for it")
        self._containers.watch()

    async def gateway_host(self) -> str:
        """Return the address of this machine on the containers' network."""
        if not self._bridge:
            self._bridge = await self._call(self._engine.bridge_address)
        return self._bridge

    async def build(self, order: BuildOrder, progress: Progress) -> dict[str, str]:
        """Build the image of an environment, unless it is there, and that of the payload."""
        async with self.stored.building():
            return await self._images.build(order, progress)

    async def restore(
        self, environment: dict[str, str], registries: Callable[[], dict[str, Any]]
    ) -> bool:
        """Have the image, by its digest where it came from a registry; say whether it is here."""
        async with self.stored.building():
            return await self._images.kept(environment["image"], registries)

    async def remove_strays(self, dry: bool) -> list[dict[str, Any]]:
        """Remove the containers of this state folder that nobody knows, or only return them."""
        return await self._call(self._containers.remove_strays, dry)

    # --- runners -----------------------------------------------------------------------------
    async def start(
        self, spec: RunnerSpec, environment: dict[str, str], placement: Placement
    ) -> Started:
        """Create and start a container; its runner reads what it has to know from its input."""
        self._containers.expect(spec.runner_id)
        try:
            await self._images.restore(environment["image"], placement)
            return await self._call(self._start, spec, environment, placement)
        except (BuildError, GatewayError) as error:
            with contextlib.suppress(BuildError):
                await self._call(self._engine.remove, _name(spec.runner_id))
            self._containers.forget(spec.runner_id)
            if isinstance(error, EngineError):
                self._look_for_engine()
            raise

    def _look_for_engine(self) -> None:
        """Have it told when an engine answers again that did not answer a start.

        Its events may have told that before the start had failed, or may not have broken off.
        """
        if self._looking is None or self._looking.done():
            self._looking = asyncio.ensure_future(self._until_it_answers())

    async def _until_it_answers(self) -> None:
        while True:
            await asyncio.sleep(RETRY)
            with contextlib.suppress(BuildError):
                await self._call(self._engine.architecture)
                return self._on_return()

    def _start(
        self, spec: RunnerSpec, environment: dict[str, str], placement: Placement
    ) -> Started:
        self._containers.watch()
        contained = inside(spec)
        bare = "untouched" in environment
        made = untouched.creation(contained, environment) if bare else _creation(environment)
        data = spec.environment["FAL_DATA_DIR"]
        group, places = os.stat(data).st_gid, spec.data_mounts
        within = limits(placement, data, group, places, _writable(environment))
        if bare:
            within["init"] = not self._brings_init(environment["image"], made["entrypoint"])
        container = self._engine.create(
            _name(spec.runner_id),
            environment["image"],
            within,
            labels=self._labels(spec.runner_id, placement),
            **made,
        )
        log = LogFile.of(spec.log, spec.secret)
        self._containers.add(container, spec.runner_id, log, placement.machine.memory_mb)
        told = None if bare else contained.to_json().encode() + b"\n"
        about = self._engine.start(container, told)
        self._containers.read(container)
        address = about["NetworkSettings"]["IPAddress"]
        process = {
            "target": "docker",
            "container": container,
            "started": about["State"]["StartedAt"],
            "memory_mb": placement.machine.memory_mb,
        }
        if bare:
            signal = about["Config"].get("StopSignal") or "SIGTERM"
            opened = {"host": address, "port": spec.exposed_port, "stop_signal": signal}
            return Started("", {**process, **opened})
        return Started(f"tcp:{address}:{port_of(spec)}" if address else "", process)

    def _brings_init(self, name: str, entrypoint: Any) -> bool:
        own = self._engine.image_config(name).get("Entrypoint")
        return untouched.brings_init(entrypoint or own)

    def states(
        self, process: dict[str, Any], runner_id: str
    ) -> AsyncGenerator[dict[str, Any], None] | None:
        """Tell how a container does whose image is untouched; others tell it themselves."""
        if "port" not in process:
            return None
        outside = OutsideOfContainer(self._engine, self._containers, self._call, process)
        return untouched.states(outside, process["host"], process["port"])

    def _labels(self, runner: str, placement: Placement) -> dict[str, str]:
        return {
            STATE: self._label,
            RUNNER: runner,
            "fal-notebook.owner": placement.owner,
            "fal-notebook.app": placement.app,
            "fal-notebook.revision": placement.revision,
        }

    async def stop(self, process: dict[str, Any], runner_id: str) -> None:
        """Send SIGTERM, or what the image says in its place, by the container's init."""
        number = process.get("stop_signal", "SIGTERM")
        with contextlib.suppress(EngineError):  # it is killed when its grace is spent
            await self._call(self._engine.signal, _name(runner_id), number)

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
        if lived := about["State"]["Running"]:
            self._engine.signal(name, "SIGKILL")
            self._engine.wait(name)
            about = self._engine.inspect(name) or about
        self._containers.read_to_end(about["Id"])
        seen = self._containers.get(about["Id"])
        out_of_memory = about["State"]["OOMKilled"] or (seen is not None and seen.out_of_memory)
        self._engine.remove(name)
        self._usage.forget(about["Id"])
        how = ending(about["State"]["ExitCode"], out_of_memory, process.get("memory_mb", 0))
        return "" if lived and how == "SIGKILL" else how

    def alive(self, process: dict[str, Any]) -> bool:
        """Say what the engine's events said last."""
        seen = self._containers.get(process.get("container", ""))
        return seen is not None and seen.running

    def stats(self, process: dict[str, Any]) -> dict[str, float]:
        """Return the last reading, and have a new one made; empty before the first."""
        return self._usage.of(process["container"]) if self.alive(process) else {}

    async def close(self) -> None:
        """Stop following the engine."""
        if self._looking is not None:
            self._looking.cancel()
        await asyncio.to_thread(self._containers.close)
        self._threads.shutdown(wait=False, cancel_futures=True)
        with contextlib.suppress(asyncio.TimeoutError):  # a call that hangs holds the connection
            await asyncio.wait_for(asyncio.to_thread(self._engine.close), LONGEST_CLOSE)


def _name(runner_id: str) -> str:
    return f"fal-{runner_id}"


def _creation(environment: Mapping[str, str]) -> dict[str, Any]:
    """Return how a container with a runner in it is made, as docker-py's arguments."""
    libraries = ["--libraries", environment["libraries"]]
    # A program that the user puts in front prepares and then becomes what follows it (exec "$@").
    given = json.loads(environment.get("entrypoint", "[]"))
    first = shlex.split(given) if isinstance(given, str) else given
    return {
        "entrypoint": [*first, "python3", environment["runner"], "contained", *libraries],
        "stdin_open": True,
        "user": environment.get("user", ""),
    }


def _writable(environment: Mapping[str, str]) -> tuple[str, ...] | None:
    """Return what stays writable where the setting ``docker_read_only`` is on."""
    if not settings.setting("docker_read_only", False):
        return None
    return ("/tmp", image.WORKDIR, image.USER_HOME) if "user" in environment else ("/tmp",)


def port_of(spec: RunnerSpec) -> int:
    """Return the port on which a runner itself listens in its container."""
    return OTHER_PORT if spec.exposed_port == PORT else PORT


def inside(spec: RunnerSpec) -> RunnerSpec:
    """Return what a runner is told whose machine is a container."""
    data = spec.environment["FAL_DATA_DIR"]
    changed = {
        name: spec.data_mounts[0] + value.removeprefix(data)
        for name, value in spec.environment.items()
        if name in ("FAL_DATA_DIR", "HF_HOME") and value.startswith(data)
    }
    return replace(
        spec,
        address=f"tcp:0.0.0.0:{port_of(spec)}",
        state="",
        payload=image.PAYLOAD,
        app_files=image.APP_FILES if spec.app_files else "",
        log="",
        folder="",
        umask=UMASK,
        data_mounts=[],  # the engine shows them
        environment={**spec.environment, **changed},
    )
