"""Containers whose image runs as it is: nothing of ours is inside, so others watch from outside."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import sys
import time
from collections.abc import AsyncGenerator, Mapping
from pathlib import PurePosixPath
from typing import Any, Protocol

from fal_notebook.runner.spec import RunnerSpec

# How often a starting server is asked, at first and later (seconds).
FAST, SLOW = 0.02, 0.25
# After so long a server that listens elsewhere is told so; it may open other ports before.
PATIENCE = 0.8
# How often is looked where it listens instead, at first (seconds); later less and less often, for
# that starts a program inside.
LOOK = 2.0
# How soon the end of a container is noticed (seconds).
NOTICE = 0.1

_INIT = re.compile(r"tini(-static)?|dumb-init|(my_|docker-)?init|catatonit")
_LISTEN = re.compile(r"^\s*\d+: ([0-9A-F]{8}|[0-9A-F]{32}):([0-9A-F]{4}) \S+ 0A ", re.MULTILINE)
# Where the engine's own name server listens in a container.
_NAME_SERVER = "127.0.0.11"


def creation(spec: RunnerSpec, environment: Mapping[str, str]) -> dict[str, Any]:
    """Return how a container is made, as docker-py's arguments; the image says all else.

    Parameters
    ----------
    environment : mapping
        What `Backend.build` returned; `entrypoint` and `cmd` in it are JSON.
    """
    given = {name: json.loads(environment.get(name, "null")) for name in ("entrypoint", "cmd")}
    # Without it what a Python server prints would be seen when it ends.
    variables = {"PYTHONUNBUFFERED": "1", **spec.environment, "PORT": str(spec.exposed_port)}
    return {"entrypoint": given["entrypoint"], "command": given["cmd"], "environment": variables}


def brings_init(entrypoint: str | list[str] | None) -> bool:
    """Say whether an image has an init of its own, which has to be its first process."""
    words = entrypoint.split() if isinstance(entrypoint, str) else entrypoint or [""]
    return _INIT.fullmatch(PurePosixPath(words[0]).name) is not None


class Outside(Protocol):
    """What is asked about a container from outside."""

    def alive(self) -> bool:
        """Say whether it lives, as far as is known without asking anybody."""

    async def runs(self) -> bool:
        """Say whether it runs indeed, and so has its address."""

    async def table(self) -> str:
        """Return the kernel's table of its sockets, empty when that cannot be had."""

    async def ending(self) -> str:
        """Return how it ended, in words, once all that it printed is in its log."""

    async def misfit(self) -> str:
        """Return why its programs cannot run on this machine, "" when nothing speaks for that."""


async def states(outside: Outside, host: str, port: int) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the states of a container as a runner in it would tell them, until its end."""
    yield {"state": "SETUP"}
    async with contextlib.aclosing(_until_open(outside, host, port)) as notes:
        async for note in notes:
            yield {"state": "SETUP", "note": note}
    if not outside.alive():
        how = await outside.ending()
        hint = _hint(how, await outside.misfit())
        yield {"state": "FAILED", "error": f"{_ended(how, f' before it opened port {port}')}{hint}"}
        return
    yield {"state": "IDLE", "openapi": {}, "address": f"tcp:{host}:{port}"}
    while outside.alive():
        await asyncio.sleep(NOTICE)
    yield {"state": "ENDED", "cause": _ended(await outside.ending())}


async def _until_open(outside: Outside, host: str, port: int) -> AsyncGenerator[str, None]:
    """Yield what there is to tell until the server answers or has ended."""
    began, looked, told = time.monotonic(), 0.0, ""
    while outside.alive():
        # Asked after it answered: the address of one that has ended may be another's by now.
        if await accepts(host, port) and await outside.runs():
            return
        now = time.monotonic()
        if now - began > PATIENCE and now - looked > max(LOOK, (now - began) / 10):
            note, looked = where(listening(await outside.table()), port), now
            if note and note != told:
                told = note
                yield note
        await asyncio.sleep(FAST if now - began < 1 else SLOW)


def _ended(how: str, when: str = "") -> str:
    if how.startswith("out of memory"):
        return f"the server ended{when}, {how}"
    return f"the server ended with {how}{when}"


def _hint(how: str, misfit: str) -> str:
    if how == "exit status 0":
        return "; what the image starts is no server, or goes into the background: give cmd="
    if misfit and how.startswith("exit status"):  # what took a signal or all memory did run
        return f"; {misfit}"
    if how in ("exit status 126", "exit status 127"):
        return "; the image lacks the program that entrypoint or cmd says, or cannot run it"
    return ""


async def accepts(host: str, port: int) -> bool:
    """Say whether somebody listens there."""
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), 1.0)
    except (OSError, asyncio.TimeoutError):
        return False
    writer.close()
    return True


# --- where it listens ------------------------------------------------------------------------
def listening(table: str) -> set[tuple[str, int]]:
    """Return the addresses on which somebody listens, of ``/proc/net/tcp`` and ``tcp6``."""
    found = {(_address(host), int(port, 16)) for host, port in _LISTEN.findall(table)}
    return {(host, port) for host, port in found if host != _NAME_SERVER}


def _address(digits: str) -> str:
    """Return an address of the table, where each 32 bits are a number of the machine's own."""
    words = [int(digits[at : at + 8], 16) for at in range(0, len(digits), 8)]
    packed = b"".join(word.to_bytes(4, sys.byteorder) for word in words)
    if packed.startswith(b"\0" * 10 + b"\xff\xff"):
        packed = packed[12:]
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)


def where(found: set[tuple[str, int]], port: int) -> str:
    """Return in one sentence where a server listens that does not answer on `port`.

    Nothing of one that opened it since.
    """
    if found & {("0.0.0.0", port), ("::", port)}:
        return ""
    wanted = f"0.0.0.0:{port} (exposed_port), as a server in a container has to"
    others = [f"[{host}]:{at}" if ":" in host else f"{host}:{at}" for host, at in sorted(found)]
    if not others:
        return f"the server has not opened a port yet; it is waited for on {wanted}"
    return f"the server listens on {', '.join(others)} and not on {wanted}"
