"""One runner's life: clean process, listen, load, set up, serve, drain, end."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import random
import signal
import sys
import time
import traceback
import types

from fal_notebook.exceptions import FalNotebookError
from fal_notebook.runner import app_files, listening, logs, mounts
from fal_notebook.runner.escapes import original
from fal_notebook.runner.link import Link
from fal_notebook.runner.loading import load
from fal_notebook.runner.log_file import record_mark
from fal_notebook.runner.secret_forms import Redact, hiding
from fal_notebook.runner.serve import RunnerApp
from fal_notebook.runner.served import Served
from fal_notebook.runner.server import Server
from fal_notebook.runner.spec import DATA, RunnerSpec
from fal_notebook.runner.upgrades import UpgradingProtocol

# How long a failed runner waits for a gateway to read why it failed, and to end it.
FAREWELL = 5.0
# WebSockets are closed so many seconds before a runner that drains would be killed.
PARTING = 1.0
YEAR = 365 * 24 * 3600


def run(spec: RunnerSpec) -> None:
    """Become the runner `spec` describes; returns when it has drained."""
    notes = clean(spec)
    loop = new_loop()
    asyncio.set_event_loop(loop)
    loop.run_until_complete(_program(spec, notes).main())


def clean(spec: RunnerSpec) -> list[str]:
    """Leave nothing of the process that this one was before: environment, files, ``__main__``.

    Returns
    -------
    list of str
        What whoever deploys should know of it.
    """
    os.environ.clear()
    os.environ.update(spec.environment)
    time.tzset()
    hidden = mounts.show(spec.environment.get("FAL_DATA_DIR", ""), spec.data_mounts)
    os.umask(spec.umask)
    os.chdir(spec.folder)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    logs.redirect(spec.log, record_mark(spec.secret), _hiding(spec))
    notes = _about_hidden(hidden, spec)
    print(*notes, sep="\n", end="\n" if notes else "", file=sys.stderr)
    faulthandler.enable(2)
    sys.argv[:] = [""]
    sys.modules["__main__"] = types.ModuleType("__main__")
    random.seed()
    return notes


def _about_hidden(places: list[str], spec: RunnerSpec) -> list[str]:
    """Say where the shared storage is not; nobody asked for the usual place."""
    if not places or spec.data_mounts == [DATA]:
        return []
    return [
        f"data_mounts: the shared storage cannot be shown at {', '.join(places)} here, where "
        "something is or no one may mount: name a folder that is empty or missing, or use the one "
        "that FAL_DATA_DIR names"
    ]


def _hiding(spec: RunnerSpec) -> Redact:
    given = set(spec.secrets) & spec.environment.keys()
    return hiding({name: spec.environment[name] for name in given})


def new_loop() -> asyncio.AbstractEventLoop:
    """Return a uvloop loop where uvloop is there, else asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def _program(spec: RunnerSpec, notes: list[str]) -> Program:
    if spec.exposed_port is None:
        return Program(spec, notes)
    from fal_notebook.runner.direct_program import DirectProgram  # few need it, and psutil

    return DirectProgram(spec, notes)


class Program:
    """One life of a runner that serves the user's function or app itself.

    Parameters
    ----------
    notes : list of str
        What it tells whoever deploys, once it is up.
    """

    def __init__(self, spec: RunnerSpec, notes: list[str]) -> None:
        self._spec = spec
        self._notes = notes
        self._link = Link()
        self._app = RunnerApp(spec.secret, self._link)
        self._ending = asyncio.Event()
        # The gateway closes connections, so none dies as it is used.
        self._server = Server(self._app, UpgradingProtocol, keep_alive=YEAR)

    async def main(self) -> None:
        """Serve at once, so that the gateway can watch the set-up; end when drained."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._ending.set)
        serving = asyncio.ensure_future(self._server.serve([listening.listen(self._spec.address)]))
        tasks = [asyncio.ensure_future(c) for c in (self._start(), self._watch())]
        await self._ending.wait()
        tasks += [asyncio.ensure_future(c) for c in (self._drain(), self._abandoned())]
        await asyncio.wait(tasks[-2:], return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        self._server.stop()
        await serving

    async def _start(self) -> None:
        self._link.publish("SETUP")
        served = None
        try:
            await self._unpack()
            loop = asyncio.get_running_loop()
            served = await loop.run_in_executor(
                None, load, self._spec.payload, self._spec.max_multiplexing
            )
            served.reports.redact = self._link.failures.redact = _hiding(self._spec)
            await served.setup()
            openapi = served.openapi()
        except BaseException as error:
            await self._fail(original(error), served)
            return
        logs.finish(None)
        served.reports.on_failure = self._link.failures.add
        self._app.served = served
        self._link.publish("IDLE", openapi=openapi, notes=self._notes)

    async def _unpack(self) -> None:
        """Have the app's files in the working folder."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, app_files.unpack, self._spec.app_files)

    async def _fail(self, error: BaseException, served: Served | None) -> None:
        """Tell why this runner is of no use, and wait to be ended."""
        if served is not None:
            served.reports.report(error)
        else:
            traceback.print_exception(error)
        logs.finish(None)
        text = "".join(traceback.format_exception_only(type(error), error)).strip()
        await self._fail_with(str(error) if isinstance(error, FalNotebookError) else text)

    async def _fail_with(self, error: str) -> None:
        self._link.publish("FAILED", error=error)
        await asyncio.sleep(FAREWELL)
        self._ending.set()

    async def _watch(self) -> None:
        """End when no gateway has been connected for `orphan_timeout` seconds."""
        await self._alone(self._spec.orphan_timeout)
        self._ending.set()

    async def _abandoned(self) -> None:
        """Return when a drain has gone on for too long without the gateway that would end it."""
        await self._alone(2 * self._spec.orphan_timeout)

    async def _alone(self, seconds: float) -> None:
        """Return when no gateway has been connected for so long."""
        while self._link.gateways or time.monotonic() - self._link.last_seen <= seconds:
            await asyncio.sleep(min(5.0, self._spec.orphan_timeout / 4))

    async def _drain(self) -> None:
        """Finish what is in flight, and what the gateway had sent before it knew."""
        self._link.publish("DRAINING")
        served = self._app.served
        told = asyncio.ensure_future(served.handle_exit()) if served is not None else None
        parting = asyncio.ensure_future(self._end_sockets())
        while self._app.in_flight or self._may_come():
            await asyncio.sleep(0.005)
        parting.cancel()
        if served is not None and told is not None:
            await told
            await served.teardown()
        await self._link.told()
        await asyncio.sleep(0.005)  # for the link to send its last states
        listening.forget(self._spec.address)

    async def _end_sockets(self) -> None:
        """Close WebSockets, which may stay for ever, in time for what comes after them."""
        await asyncio.sleep(max(0.0, self._spec.grace - PARTING))
        await self._app.end_sockets()

    def _may_come(self) -> bool:
        """Say whether a gateway may have requests on their way; it also ends who takes too long."""
        connected = self._link.gateways and self._app.served is not None
        return bool(connected) and not self._app.released


def flush() -> None:
    """Write what is buffered, whatever the user's code has put in place of the streams."""
    with contextlib.suppress(Exception):
        logs.finish(None)
        sys.stdout.flush()
        sys.stderr.flush()
