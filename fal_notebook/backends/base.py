"""The contract of a backend: how runners are built, started, stopped and measured; not when."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from fal_notebook.machines import MachineType
from fal_notebook.runner.log_file import LogFile
from fal_notebook.runner.spec import RunnerSpec

Progress = Callable[[str], None]


@dataclass(frozen=True)
class BuildOrder:
    """What the environment of a revision is built from.

    Attributes
    ----------
    manifest, options : dict
        The payload's manifest and all options of the revision.
    payload : Path
        The payload's file, named by its SHA-256.
    context : Path, optional
        The build context of the image, or the `app_files`: a tar archive named by its SHA-256.
    credentials : dict
        ``registries`` (username and password by host) and ``secrets`` (values by name) of the
        build; nothing of them may stay in an image, a log or a command line.
    bases : dict
        Of a revision that is built again: by their names, the images that it was made from, as
        ``bases`` of its environment says them; nothing else may take their place.
    """

    manifest: dict[str, Any]
    options: dict[str, Any]
    payload: Path
    context: Path | None = None
    credentials: dict[str, Any] = field(default_factory=dict, repr=False)
    bases: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Placement:
    """Whose runner it is, and what it may take of the machine; its own GPUs by number or UUID.

    `registries` gives the credentials for its image, should that have to be fetched again, and
    `on_pull` is called before it is; only `docker` fetches one at a start.
    """

    owner: str
    app: str
    revision: str
    machine: MachineType
    gpus: tuple[str, ...] = ()
    registries: Callable[[], dict[str, Any]] = dict
    on_pull: Callable[[], None] = lambda: None


class Left(NamedTuple):
    """A runner of an earlier gateway: its id, what finds its process, and its log."""

    id: str
    process: dict[str, Any]
    log: LogFile


@dataclass(frozen=True)
class Started:
    """A runner that was started: where it listens and what finds it again after a restart."""

    address: str
    process: dict[str, Any]


class Backend(Protocol):
    """What the controller needs of a place where runners live.

    A runner's end is not reported by the backend, but for those of `states`: the gateway sees its
    link close.
    """

    async def build(self, order: BuildOrder, progress: Progress) -> dict[str, str]:
        """Make the environment of a revision and return what `start` needs to use it.

        Raises
        ------
        BuildError
            With the builder's reason; nothing half-built stays.
        """

    async def restore(
        self, environment: dict[str, str], registries: Callable[[], dict[str, Any]]
    ) -> bool:
        """Say whether what `build` returned before can be used still, without another build.

        An image that a registry keeps is fetched again with the credentials of `registries`.
        """

    async def start(
        self, spec: RunnerSpec, environment: dict[str, str], placement: Placement
    ) -> Started:
        """Start a runner; returns when its process exists, long before it is ready.

        `spec` is written for this machine; a backend changes what is different elsewhere.

        Raises
        ------
        BuildError
            When no process could be started; nothing of it stays.
        """

    def states(
        self, process: dict[str, Any], runner_id: str
    ) -> AsyncGenerator[dict[str, Any], None] | None:
        """Yield the states of a runner that has no link of its own, until it has ended.

        They are those that the link of any other tells: SETUP, perhaps with a ``note``, IDLE with
        the ``address`` of the server, FAILED with ``error``, ENDED with ``cause``; from the first
        whenever it is asked for. None for a runner that has a link.
        """

    async def stop(self, process: dict[str, Any], runner_id: str) -> None:
        """Ask a runner to drain and end (SIGTERM); does nothing when it is gone."""

    async def kill(self, process: dict[str, Any], runner_id: str) -> str:
        """End a runner at once with all it started; return when nothing of it is left.

        The answer says how it ended by itself, such as "exit status 3" or "SIGSEGV"; "" when that
        is not known, and when this ended it. Does nothing when all of it is gone.
        """

    def alive(self, process: dict[str, Any]) -> bool:
        """Say whether this very process still lives (not another with its number)."""

    def stats(self, process: dict[str, Any]) -> dict[str, float]:
        """Return ``cpu_percent`` and ``memory_bytes`` of a runner; empty when it is gone."""

    async def gateway_host(self) -> str:
        """Return the address of this machine for runners, empty for that of every program."""

    async def take_up(self, runners: Iterable[Left]) -> None:
        """Get to know runners of an earlier gateway, and end strays."""

    async def close(self) -> None:
        """Release what the backend holds; runners live on."""

    def inherited(self, environment: Mapping[str, str]) -> dict[str, str]:
        """Return the environment variables that a runner gets from its surroundings.

        `environment` is what `build` returned.
        """
