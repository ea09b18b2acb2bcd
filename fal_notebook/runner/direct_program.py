"""The life of a runner whose traffic goes to the user's own server (Direct Server Mode).

The runner itself answers its gateway's link only; it says where the server answers.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from pathlib import Path

from fal_notebook.runner import listening, logs
from fal_notebook.runner.envelope import unpack
from fal_notebook.runner.program import Program
from fal_notebook.runner.spec import RunnerSpec
from fal_notebook.runner.user_server import (
    HOSTS,
    UserServer,
    accepts,
    free_port,
    holder,
    of_container,
)

# How often a starting server is asked, at first and later (seconds).
FAST, SLOW = 0.01, 0.2
# After so long a server that listens elsewhere is told so; it may open other ports before.
PATIENCE = 0.8
# How long the gateway has to hear why the runner ends.
LAST_WORDS = 0.05


class ServerEndedError(Exception):
    """The user's server has ended before it opened its port."""


class DirectProgram(Program):
    """One life; `Program` has what is the same for every runner."""

    def __init__(self, spec: RunnerSpec, notes: list[str]) -> None:
        super().__init__(spec, notes)
        assert spec.exposed_port is not None
        self._exposed = spec.exposed_port
        # A container has every port to itself, and is reached from outside.
        self._contained = spec.address.startswith("tcp:")
        self._port = self._exposed if self._contained else free_port()
        self._user = UserServer(spec, self._port, of_container() if self._contained else HOSTS)
        self._note = ""
        self._died = False

    async def _start(self) -> None:
        self._link.publish("SETUP")
        try:
            await self._unpack()
            await self._until_free()
            await self._user.start(command_of(self._spec.payload))
            host, port = await self._until_open()
        except Exception as error:
            await self._refuse(error)
            return
        found = {"address": f"tcp:{host}:{port}", "fixed_port": port != self._port}
        self._link.publish("IDLE", openapi={}, notes=self._notes, **found)
        await self._until_dead(host.strip("[]"), port)

    async def _refuse(self, error: Exception) -> None:
        """Tell why this runner is of no use; what is no news to the user keeps its traceback."""
        if not isinstance(error, ServerEndedError):
            traceback.print_exc()
        logs.finish(None)
        await self._fail_with(str(error))

    # --- until it answers --------------------------------------------------------------------
    async def _until_free(self) -> None:
        """Wait while the runner before this one still has the fixed port."""
        while self._spec.fixed_port and await accepts("127.0.0.1", self._exposed):
            self._tell(f"it waits for port {self._exposed}, held by {holder(self._exposed)}")
            await asyncio.sleep(SLOW)

    async def _until_open(self) -> tuple[str, int]:
        began = time.monotonic()
        while (found := await self._user.address(self._port, self._exposed)) is None:
            if self._user.ending and not self._user.processes():
                raise ServerEndedError(self._why_ended())
            waited = time.monotonic() - began
            if waited > PATIENCE:
                self._tell(await self._where())
            await asyncio.sleep(FAST if waited < 1 else SLOW)
        return found

    def _why_ended(self) -> str:
        taken = holder(self._exposed)
        hint = f"; port {self._exposed} is taken by {taken}" if taken else ""
        raised = self._user.error()
        why = f": {raised}" if raised else ""
        return f"the server ended with {self._user.ending} before it opened its port{hint}{why}"

    async def _where(self) -> str:
        """Return where the server listens instead."""
        others = sorted(f"{ip}:{port}" for ip, port in self._user.listens())
        wanted = f"127.0.0.1:$PORT (here {self._port}) or exposed_port={self._exposed}"
        if self._contained:
            wanted = f"0.0.0.0:{self._exposed} (exposed_port), as a server in a container has to"
        if not others:
            return f"the server has not opened a port yet; it is waited for on {wanted}"
        return f"the server listens on {', '.join(others)} and not on {wanted}"

    def _tell(self, note: str) -> None:
        if note != self._note:
            self._note = note
            self._link.publish("SETUP", note=note)

    # --- afterwards --------------------------------------------------------------------------
    async def _until_dead(self, host: str, port: int) -> None:
        """End with the server; one that went into the background lives while its port is open."""
        await self._user.wait()
        while await accepts(host, port) and self._user.processes():
            await asyncio.sleep(1.0)
        if not self._ending.is_set():
            self._died = True
            self._link.publish("ENDED", cause=f"the server ended with {self._user.ending}")
            self._ending.set()

    async def _drain(self) -> None:
        """Let the server finish what the gateway has sent, then ask it to end."""
        if not self._died:
            self._link.publish("DRAINING")
            await self._until_released()
            await self._user.end()
        await asyncio.sleep(LAST_WORDS)
        listening.forget(self._spec.address)

    async def _until_released(self) -> None:
        while self._link.gateways and not self._app.released:
            await asyncio.sleep(0.005)


def command_of(payload: str) -> str | None:
    """Return the shell command of a payload, None when it holds a function."""
    manifest, content = unpack(Path(payload).read_bytes())
    return bytes(content).decode() if manifest["kind"] == "server" else None
