"""The life of one runner, told once from top to bottom: start, follow its link, clean up."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from fal_notebook.backends.base import Backend
from fal_notebook.exceptions import FalNotebookError
from fal_notebook.gateway import link
from fal_notebook.gateway.fleet import STARTUP_TIMEOUT, Runner
from fal_notebook.gateway.health import Health
from fal_notebook.gateway.launch import Launcher
from fal_notebook.gateway.logs.redaction import Redaction
from fal_notebook.gateway.states import States
from fal_notebook.gateway.store import Revision
from fal_notebook.gateway.transitions import ENDING
from fal_notebook.gateway.upstream import UpstreamError

# Ends that say nothing: nobody knows, it was ended from here, or it was told to end.
PLAIN = ("", "SIGTERM", "exit status 0")
# How often a draining runner's requests are looked at.
DRAIN_PERIOD = 0.003

_LOG = logging.getLogger(__name__)
Spawn = Callable[[Coroutine[Any, Any, Any]], "asyncio.Task[Any]"]


class Life:
    """Lives a runner's life: `run` it once; `stop` and `kill` end it.

    Parameters
    ----------
    spawn : callable
        Runs a coroutine beside, and logs when it fails.
    redaction : Redaction
        For what the runner tells, which may hold values of secrets.
    health : Health, optional
        Asks it, where its app has a health check.
    """

    def __init__(
        self,
        runner: Runner,
        states: States,
        backend: Backend,
        launcher: Launcher,
        spawn: Spawn,
        redaction: Redaction,
        health: Health | None = None,
    ) -> None:
        self._runner = runner
        self._states = states
        self._backend = backend
        self._launcher = launcher
        self._spawn = spawn
        self._redaction = redaction
        self._health = health
        self._checking: asyncio.Task[Any] | None = None
        self._note = ""
        self._ending: str | None = None  # None while nobody has looked
        self._cause = ""  # for which it was killed here
        self._over = False  # it is being killed, or has gone
        self._patient = False  # its end waits for its requests
        self._killing = asyncio.Lock()

    async def run(self, revision: Revision, adopted: bool) -> None:
        """Follow the runner from its start, or from its adoption, to its end."""
        row = self._runner.row
        lost = adopted and not self._backend.alive(row.process)
        error = await self._until_gone(revision, adopted)
        self._over = True
        if self._checking is not None:
            self._checking.cancel()
        self._states.gone()
        await self._kill()
        how = f" ({self._ending})" if self._ending else ""
        self._tell_ending(how)
        await self._launcher.clean_up(row)
        if not lost:  # what happened without a gateway is no failed start
            self._states.failed(error or f"the runner ended while it was starting{how}")
        self._states.ended(error or f"the runner ended by itself{how}")

    async def _kill(self) -> None:
        """Kill what is left of it; who comes second would take that for how it ended by itself."""
        async with self._killing:
            row = self._runner.row
            found = await self._backend.kill(row.process, row.id)
            if row.process and self._ending is None:
                self._ending = found

    def _tell_ending(self, how: str) -> None:
        """Let those know how it ended who lost it; what ended it itself is known already."""
        row, told = self._runner.row, "" if self._ending in PLAIN else self._ending or ""
        if row.state == "TERMINATING" and row.cause and told and told not in row.cause:
            row.cause += how
        self._runner.how.set_result(told or self._cause)

    def stop(self, cause: str, patient: bool = False) -> None:
        """Drain the runner and end it; after the grace it is killed.

        A patient end gives its requests all of their `request_timeout`, and then the grace.
        """
        if self._runner.row.state not in ENDING:
            self._patient = patient
            self._states.enter("DRAINING", cause)
            self._spawn(self.drain())

    def hurry(self) -> None:
        """Be patient no more: from now on it has its grace."""
        self._patient = False

    def kill(self, cause: str) -> None:
        """End the runner at once, with what it has in flight."""
        row, over = self._runner.row, self._over
        self._over = True
        if not over and row.state == "TERMINATING":  # it tears down for too long
            row.cause = cause
        elif not over:
            self._states.enter("TERMINATING", cause)
        if not over:
            self._cause = cause
            self._spawn(self._kill())

    async def drain(self) -> None:
        """Ask for the end, say when the last request was sent, kill when the grace is spent."""
        release = asyncio.ensure_future(self._release())
        try:
            while self._patient and self._runner.has_requests:
                await asyncio.sleep(DRAIN_PERIOD)
            await asyncio.wait_for(self._runner.ended.wait(), self._runner.grace)
        except asyncio.TimeoutError:
            self.kill("termination_grace_period_seconds is spent")
        finally:
            release.cancel()

    async def _release(self) -> None:
        """Send SIGTERM, then ``end`` once nothing is on its way to the runner any more.

        A server without a runner in front of it would not finish what it has: it is told then.
        """
        runner, row = self._runner, self._runner.row
        while not row.process:  # it is just being started
            await asyncio.sleep(DRAIN_PERIOD)
        linked = self._backend.states(row.process, row.id) is None
        if linked:
            await self._backend.stop(row.process, row.id)
        while runner.in_flight:
            await asyncio.sleep(DRAIN_PERIOD)
        if row.state == "DRAINING":
            self._states.enter("TERMINATING")
        if linked:
            await link.end(runner)
        else:
            await self._backend.stop(row.process, row.id)

    async def _until_gone(self, revision: Revision, adopted: bool) -> str:
        """Start the runner and follow it while it lives; return what went wrong, if known."""
        row = self._runner.row
        try:  # it starts when it has its GPUs, however long that takes
            await self._place(revision, adopted)
        except FalNotebookError as refusal:
            return str(refusal)
        self._timer = self._startup_timer(revision)
        try:
            if not adopted:
                await self._start(revision)
            if row.process and not self._over:
                await self._follow(revision.number)
        except FalNotebookError as refusal:
            return str(refusal)
        except Exception as bug:
            _LOG.exception("runner %s is ended for an error of the gateway", row.id)
            return f"the gateway failed: {bug!r}"
        finally:
            self._timer.cancel()
        return ""

    async def _place(self, revision: Revision, adopted: bool) -> None:
        if adopted:
            self._launcher.adopt(self._runner.row)
        else:
            await self._launcher.place(self._runner, revision, self._waiting)
            self._mark("begun")

    def _waiting(self, cause: str) -> None:
        if self._runner.row.state == "PENDING":
            self._states.enter("PENDING", cause)
            self._runner.on_note(cause)

    async def _start(self, revision: Revision) -> None:
        await self._launcher.start(self._runner, revision, self._pulling)
        self._mark("process")
        if self._runner.row.state in ("PENDING", "DOCKER_PULL"):
            self._states.enter("SETUP", "its process was started")

    def _pulling(self) -> None:
        self._mark("pulling")
        if self._runner.row.state == "PENDING":
            self._states.enter("DOCKER_PULL", "its image is fetched again")

    def _mark(self, name: str, ago: float = 0.0) -> None:
        if self._runner.birth is not None:
            self._runner.birth.mark(name, ago)

    def _startup_timer(self, revision: Revision) -> asyncio.TimerHandle:
        timeout = float(revision.options["startup_timeout"] or STARTUP_TIMEOUT)
        return asyncio.get_running_loop().call_later(timeout, self._startup_timeout, timeout)

    def _startup_timeout(self, timeout: float) -> None:
        error = f"setup took longer than startup_timeout={timeout:g} s"
        error += f": {self._note}" if self._note else ""
        self._fail(error)

    def _fail(self, error: str) -> None:
        self._states.failed(error)
        self.kill(error)

    async def _follow(self, revision: int) -> None:
        """Follow the runner's link until it closes, or until the runner is to be killed."""
        row = self._runner.row
        lines = self._backend.states(row.process, row.id)
        lines = lines or link.states(self._runner, lambda: self._backend.alive(row.process))
        # Once its link closes it has ended.
        with contextlib.suppress(UpstreamError, OSError):
            async with contextlib.aclosing(lines):
                async for line in lines:
                    if "error" in line and "state" not in line:
                        self._states.request_failed(line["error"], revision)
                        continue
                    self._heard(line)
                    if line["state"] == "FAILED":
                        return

    def _heard(self, line: dict[str, Any]) -> None:
        state = line["state"]
        if state == "SETUP":
            self._mark("setup", line.get("ago", 0.0))
        if state == "SETUP" and "note" in line:
            self._noted(line["note"])
        elif state == "FAILED":
            self._states.failed(self._redacted(line["error"]))
        elif state == "IDLE" and self._runner.live:
            self._states.reached(line)
            self._serve()
        elif state == "ENDED" and self._runner.row.state not in ENDING:
            self._runner.row.cause = self._redacted(line["cause"])
        elif state == "DRAINING":
            self._timer.cancel()
            self.stop("the runner was told to end")

    def _noted(self, note: str) -> None:
        if note != self._note:
            self._note = self._redacted(note)
            self._runner.on_note(self._note)

    def _serve(self) -> None:
        """Let the runner serve; first it passes its health check, if its app has one."""
        if self._health is None:
            self._ready()
        else:
            self._checking = self._spawn(self._while_well(self._health))

    def _ready(self) -> None:
        self._timer.cancel()
        if self._runner.row.state == "SETUP":
            self._states.ready()

    async def _while_well(self, health: Health) -> None:
        """End the runner that is not well any more: at once when it is stuck."""
        if self._runner.row.ready_at is not None:
            self._runner.check_now.set()  # adopted: nobody has asked for some time
        elif error := await health.until_well(self._noted):
            self._fail(error)
            return
        self._ready()
        cause = await health.until_unwell()
        if self._runner.row.state != "TERMINATING":  # its teardown has its grace
            (self.stop if health.answered else self.kill)(cause)

    def _redacted(self, told: str) -> str:
        return self._redaction.current()(told)
