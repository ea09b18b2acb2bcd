"""The gateway's side of zygotes: one parent of runners per environment, started at first need."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from fal_notebook.backends import children
from fal_notebook.exceptions import BuildError
from fal_notebook.runner.spec import RunnerSpec

# Names a runner may inherit from the gateway; everything else is declared.
INHERITED = (
    *("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TZ", "LD_LIBRARY_PATH"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
)

# Seconds that a zygote may take to import everything, to fork, and to end when it is told to.
READY_TIMEOUT = 60.0
FORK_TIMEOUT = 10.0
CLOSE_GRACE = 1.0

T = TypeVar("T")
_LOG = logging.getLogger(__name__)


def clean_environment() -> dict[str, str]:
    """Return what a runner inherits from the gateway's own environment."""
    return {name: os.environ[name] for name in INHERITED if name in os.environ}


def _command(bundle: Path, environment: dict[str, str], *mode: str) -> list[str]:
    libraries = environment["libraries"]
    # Without site, a launcher has none of the environment's threads.
    bare = ["-I", "-S"] if mode[0] == "launcher" else []
    return [
        environment["python"],
        *bare,
        str(bundle),
        *mode,
        *(["--libraries", libraries] if libraries else []),
    ]


class Zygote:
    """A process that forks a runner for each spec it is sent, and ends what killed ones leave."""

    def __init__(self, process: asyncio.subprocess.Process, connection: socket.socket) -> None:
        self._process = process
        self._connection = connection
        self._lock = asyncio.Lock()
        self._buffer = b""

    @property
    def alive(self) -> bool:
        """Whether it can still fork."""
        return self._process.returncode is None and self._connection.fileno() >= 0

    def drop(self) -> None:
        """Ask it for nothing any more; without a socket it ends after its last runner."""
        self._connection.close()

    def kill(self) -> None:
        """End it at once: it hangs, and what it forked later would be nobody's."""
        self.drop()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def ready(self) -> bool:
        """Wait until it has imported everything; say whether a fork is safe there."""
        return await self._in_time(self._line(), READY_TIMEOUT) == b"ready"

    async def _in_time(self, answer: Coroutine[Any, Any, T], timeout: float) -> T:
        """Return its answer; one that hangs, or whose answer nobody awaits any more, is killed."""
        try:
            return await asyncio.wait_for(answer, timeout)
        except asyncio.TimeoutError:
            self.kill()
            error = f"the environment's warm process gave no answer in {timeout:g} s"
            _LOG.warning("%s; it was killed (pid %d)", error, self._process.pid)
            raise BuildError(error) from None
        except asyncio.CancelledError:
            self.kill()
            raise

    async def fork(self, spec: RunnerSpec) -> tuple[int, int]:
        """Return the process ids of a new runner and of its keeper.

        Raises
        ------
        BuildError
            When the zygote is gone, or hangs.
        """
        async with self._lock:
            if not self.alive:
                raise BuildError("the environment's warm process has ended")
            try:
                answer = await self._in_time(self._ask(spec), FORK_TIMEOUT)
            except OSError as error:
                raise BuildError(f"the environment's warm process has ended: {error}") from error
            runner, keeper = answer.split()
            return int(runner), int(keeper)

    async def _ask(self, spec: RunnerSpec) -> bytes:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(self._connection, spec.to_json().encode() + b"\n")
        return await self._line()

    async def _line(self) -> bytes:
        loop = asyncio.get_running_loop()
        while b"\n" not in self._buffer:
            data = await loop.sock_recv(self._connection, 1024)
            if not data:
                raise BuildError(
                    "the runner program did not start in this environment; "
                    "the end of the gateway's log says why (%fal gateway status)"
                )
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    async def close(self) -> None:
        """Let it end and wait for that."""
        self.drop()
        try:
            await asyncio.wait_for(self._process.wait(), CLOSE_GRACE)
        except asyncio.TimeoutError:
            self.kill()
            await self._process.wait()


class Zygotes:
    """The zygotes of all environments, keyed by interpreter and library folder.

    Parameters
    ----------
    bundle : Path
        The runner's zip.
    log : Path
        File that gets what goes wrong in zygotes.
    warm : bool
        Whether they import everything first, where a fork is safe after that.
    on_end : callable
        Called when one has ended that was not closed here.
    """

    def __init__(self, bundle: Path, log: Path, warm: bool, on_end: Callable[[], None]) -> None:
        self._bundle = bundle
        self._log = log
        self._warm = warm
        self._on_end = on_end
        self._all: dict[str, asyncio.Task[Zygote]] = {}
        self._watching: set[asyncio.Task[None]] = set()

    async def get(self, environment: dict[str, str]) -> Zygote:
        """Return the environment's zygote, started now if there is none that lives."""
        key = json.dumps(environment, sort_keys=True)
        task = self._all.get(key)
        if task is None or (task.done() and not _alive(task)):
            task = self._all[key] = asyncio.ensure_future(self._start(environment))
        return await asyncio.shield(task)

    async def _start(self, environment: dict[str, str]) -> Zygote:
        for mode in ("zygote", "launcher") if self._warm else ("launcher",):
            zygote = await self._start_as(mode, environment)
            if zygote is not None:
                return zygote
        raise BuildError(f"{environment['python']} starts threads, so it cannot start runners")

    async def _start_as(self, mode: str, environment: dict[str, str]) -> Zygote | None:
        """Return a new zygote; None says that a fork is not safe there."""
        ours, theirs = socket.socketpair()
        try:
            ours.setblocking(False)
            with theirs, _appended(self._log) as log:
                arguments = _command(self._bundle, environment, mode, str(theirs.fileno()))
                process = await _execute(
                    arguments,
                    log,
                    clean_environment(),
                    stdin=asyncio.subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                )
            zygote = Zygote(process, ours)
            if await zygote.ready():
                self._watching.add(asyncio.ensure_future(self._watch(process)))
                return zygote
            await zygote.close()
            return None
        except BaseException:
            ours.close()
            raise

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        await process.wait()
        self._on_end()

    async def close(self) -> None:
        """End every zygote, also one that is just starting."""
        for watch in self._watching:
            watch.cancel()
        for task in self._all.values():
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled() and not task.exception():
                await task.result().close()


def _alive(task: asyncio.Task[Zygote]) -> bool:
    if task.cancelled() or task.exception():
        return False
    zygote = task.result()
    if not zygote.alive:
        zygote.drop()
    return zygote.alive


def _appended(path: Path) -> BinaryIO:
    return open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")


async def _execute(
    arguments: list[str], log: BinaryIO, variables: dict[str, str], **more: Any
) -> asyncio.subprocess.Process:
    """Start a program in a session of its own.

    Raises
    ------
    BuildError
        When the interpreter cannot be executed.
    """
    try:
        return await children.start(
            *arguments, stdout=log, stderr=log, env=variables, start_new_session=True, **more
        )
    except OSError as error:
        raise BuildError(f"{arguments[0]} cannot be executed: {error.strerror}") from error


async def spawn(
    bundle: Path, environment: dict[str, str], spec: RunnerSpec
) -> asyncio.subprocess.Process:
    """Start a runner without a zygote (not on Linux); its spec goes over standard input.

    Its name is in the environment that it is born with, by which its children are found.
    """
    variables = {**clean_environment(), "FAL_RUNNER_ID": spec.runner_id}
    with _appended(Path(spec.log)) as log:
        arguments = _command(bundle, environment, "spawn")
        process = await _execute(arguments, log, variables, stdin=asyncio.subprocess.PIPE)
    assert process.stdin is not None
    with contextlib.suppress(ConnectionError):  # it ended at once: that is seen on its link
        process.stdin.write(spec.to_json().encode() + b"\n")
        await process.stdin.drain()
    process.stdin.close()
    return process
