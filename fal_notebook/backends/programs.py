"""Programs that end with the gateway, with all they start; what they say goes to who runs them."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from fal_notebook.backends import children
from fal_notebook.runner import keeper

LOOK_EVERY = 0.5
"""Seconds between two looks whether a silent program is still there."""

_LINUX = sys.platform == "linux"
_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")


async def run(
    command: Sequence[str], cwd: Path, environment: Mapping[str, str], told: Callable[[str], None]
) -> int:
    """Run a program to its end; when this is cancelled, it is killed with all its children.

    Parameters
    ----------
    told : callable
        Gets each line that it writes to its standard error.

    Returns
    -------
    int
        Its exit status.
    """
    process = await _start(command, cwd, environment)
    try:
        async for line in _lines(process):
            told(line)
        await process.wait()
    finally:
        if process.returncode is None:
            _end(process)
            await process.wait()
    return process.returncode or 0


def killed(status: int) -> str:
    """Return what to say of the exit status of a program that a signal has ended, else ""."""
    number = -status if status < 0 else status - 128
    try:
        name = signal.Signals(number).name
    except ValueError:
        return ""
    more = "; the machine may have had no memory left" if name == "SIGKILL" else ""
    return f"it was ended by {name}{more}"


async def _start(
    command: Sequence[str], cwd: Path, environment: Mapping[str, str]
) -> asyncio.subprocess.Process:
    return await children.start(
        *_keeper(),
        *command,
        cwd=cwd,
        env=dict(environment),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,  # a process group of its own, what it starts included
    )


def _keeper() -> list[str]:
    """Return what a command begins with of which nothing outlives this process (Linux)."""
    return [sys.executable, "-I", "-S", keeper.__file__, str(os.getpid())] if _LINUX else []


def _end(process: asyncio.subprocess.Process) -> None:
    """Have a program ended with all its children: by its keeper, elsewhere as a group."""
    with suppress(ProcessLookupError, PermissionError):  # it ended this moment
        if _LINUX:
            process.terminate()
        else:
            os.killpg(process.pid, signal.SIGKILL)


async def _lines(process: asyncio.subprocess.Process) -> AsyncIterator[str]:
    """Yield what a program writes to its standard error, line by line."""
    # Not readline: it gives up on a line above 64 KiB, and a build backend may print one.
    rest = b""
    while chunk := await _read(process):
        *found, rest = re.split(rb"[\r\n]", rest + chunk)
        for line in found:
            if text := _plain(line):
                yield text
    if text := _plain(rest):
        yield text


async def _read(process: asyncio.subprocess.Process) -> bytes:
    """Return what comes next, b"" at the end; what outlives a killed one may keep its pipe open."""
    assert process.stderr is not None
    while True:
        try:
            return await asyncio.wait_for(process.stderr.read(65536), LOOK_EVERY)
        except asyncio.TimeoutError:
            if process.returncode is not None:
                return b""


def _plain(line: bytes) -> str:
    return _ANSI.sub("", line.decode("utf-8", "replace")).rstrip()
