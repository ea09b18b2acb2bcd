"""The user's own server as a process below its runner: started, watched for its port, ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import Mapping
from pathlib import Path

import psutil

from fal_notebook.runner.log_file import record_mark
from fal_notebook.runner.sdk_server import LISTEN
from fal_notebook.runner.spec import RunnerSpec
from fal_notebook.runner.user_function import LOG_MARK

# Where a server on this machine may be reached; names as in addresses of the gateway's pools.
HOSTS = {"127.0.0.1": "127.0.0.1", "::1": "[::1]"}
_ANY = {"0.0.0.0", "::", ""}
_PORT = re.compile(r"(?<!\$)\{port\}")
_CHILD = """
import sys
sys.path[:] = {path!r}
from fal_notebook.runner.user_function import main
main({payload!r}, {log!r}, {port}, {told!r})
"""


def of_container() -> dict[str, str]:
    """Return the address that a container has on its network, as `HOSTS` has those of a machine."""
    own = socket.gethostbyname(socket.gethostname())
    return {own: own}


def free_port() -> int:
    """Return a port of 127.0.0.1 on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class UserServer:
    """What a cell starts: a shell command, or a Python function in a process of its own.

    Parameters
    ----------
    port : int
        Offered as ``$PORT`` and ``{port}``, or as the function's parameter `port`.
    hosts : mapping of str to str
        Addresses on which it may be reached, and how the gateway's pools write them.
    """

    def __init__(self, spec: RunnerSpec, port: int, hosts: Mapping[str, str] = HOSTS) -> None:
        self._spec = spec
        self._port = port
        self._hosts = hosts
        self._process: Process | None = None

    async def start(self, command: str | None) -> None:
        """Start the command; None: the function of the payload."""
        own = dict[str, str]()
        if command is not None:
            arguments = ["/bin/sh", "-c", _PORT.sub(str(self._port), command)]
        else:
            arguments = [sys.executable, "-c", self._child()]
            own[LOG_MARK] = record_mark(self._spec.secret).decode()  # everybody sees a command
        # Without it what a Python server prints would be seen when it ends.
        variables = {"PYTHONUNBUFFERED": "1", **os.environ, "PORT": str(self._port), **own}
        variables[LISTEN] = "127.0.0.1" if self._hosts is HOSTS else "0.0.0.0"
        self._process = await asyncio.create_subprocess_exec(*arguments, env=variables)

    def _child(self) -> str:
        spec = self._spec
        files = {"payload": spec.payload, "log": spec.log, "told": str(self._told)}
        return _CHILD.format(path=sys.path, port=self._port, **files)

    @property
    def _told(self) -> Path:
        return Path(self._spec.folder, ".server-error")

    # --- how it does -------------------------------------------------------------------------
    async def wait(self) -> None:
        """Return when the process that was started has ended; what it left may go on."""
        assert self._process is not None
        await self._process.wait()

    @property
    def ending(self) -> str:
        """How it ended, in words; empty while it lives."""
        status = self._process.returncode if self._process is not None else None
        if status is None:
            return ""
        if status >= 0:
            return f"exit status {status}"
        with contextlib.suppress(ValueError):
            return signal.Signals(-status).name
        return f"signal {-status}"

    def error(self) -> str:
        """Return what the function has raised, empty where nothing is known; ask once."""
        with contextlib.suppress(OSError):
            text = self._told.read_text(errors="replace")
            self._told.unlink()
            return text
        return ""

    def processes(self) -> list[psutil.Process]:
        """Return what was started here and lives, also what left its parent."""
        below = {p.pid: p for p in psutil.Process().children(recursive=True)}
        for process in psutil.process_iter() if not below else ():
            with contextlib.suppress(psutil.Error, OSError):
                if process.pid != os.getpid() and self._is_ours(process):
                    below[process.pid] = process
        return [p for p in below.values() if _lives(p)]

    def _is_ours(self, process: psutil.Process) -> bool:
        if os.getsid(process.pid) == os.getpid():
            return True
        return bool(process.environ().get("FAL_RUNNER_ID") == self._spec.runner_id)

    def listens(self) -> set[tuple[str, int]]:
        """Return the addresses on which its processes listen."""
        found: set[tuple[str, int]] = set()
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                found |= _listening(process)
        return found

    async def address(self, *ports: int) -> tuple[str, int] | None:
        """Return host and port where it answers on one of `ports`; another's server is none."""
        for port in ports:
            for host, name in self._hosts.items():
                if await accepts(host, port) and _covers(self.listens(), host, port):
                    return name, port
        return None

    async def end(self) -> None:
        """Ask every process to end, and wait until none is left."""
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.terminate()
        while self.processes():
            await asyncio.sleep(0.02)


async def accepts(host: str, port: int) -> bool:
    """Say whether somebody listens there."""
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), 1.0)
    except (OSError, asyncio.TimeoutError):
        return False
    writer.close()
    return True


def holder(port: int) -> str:
    """Return who listens on a port of this machine, as far as one may see."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(number == port for _, number in _listening(process)):
                return f"{process.name()} (process {process.pid})"
    return ""


def _listening(process: psutil.Process) -> set[tuple[str, int]]:
    old = not hasattr(process, "net_connections")  # psutil 6 gave the method this name
    connections = process.connections("tcp") if old else process.net_connections("tcp")
    return {(c.laddr.ip, c.laddr.port) for c in connections if c.status == psutil.CONN_LISTEN}


def _covers(listening: set[tuple[str, int]], host: str, port: int) -> bool:
    return any(number == port and (ip == host or ip in _ANY) for ip, number in listening)


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
