"""One runner's life: clean process, listen, load, set up, serve, drain, end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import uvicorn

from fal_notebook.runner import logs
from fal_notebook.runner.function import Function
from fal_notebook.runner.serve import Link, RunnerApp
from fal_notebook.runner.spec import RunnerSpec

# How long a failed runner waits for a gateway to read why it failed.
FAREWELL = 2.0


def run(spec: RunnerSpec) -> None:
    """Become the runner `spec` describes; returns when it has drained."""
    os.environ.clear()
    os.environ.update(spec.environment)
    os.chdir(spec.folder)
    logs.redirect(spec.log)
    loop = new_loop()
    asyncio.set_event_loop(loop)
    loop.run_until_complete(_Program(spec).main())


def new_loop() -> asyncio.AbstractEventLoop:
    """Return a uvloop loop where uvloop is there, else asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def listen(path: str) -> socket.socket:
    """Return a Unix socket that only this user may connect to."""
    server = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        server.bind(path)
    finally:
        os.umask(before)
    server.listen(128)
    return server


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: ours drain first."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Program:
    def __init__(self, spec: RunnerSpec) -> None:
        self._spec = spec
        self._link = Link()
        self._app = RunnerApp(spec.secret, self._link)
        self._ending = asyncio.Event()
        config = uvicorn.Config(
            self._app,
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=3600,  # the gateway closes connections, so none dies as it is used
        )
        self._server = _Server(config)

    async def main(self) -> None:
        """Serve at once, so that the gateway can watch the set-up; end when drained."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._ending.set)
        serving = asyncio.ensure_future(self._server.serve([listen(self._spec.socket)]))
        tasks = [asyncio.ensure_future(c) for c in (self._start(), self._watch())]
        await self._ending.wait()
        await self._drain()
        for task in tasks:
            task.cancel()
        self._server.should_exit = self._server.force_exit = True
        await serving

    async def _start(self) -> None:
        self._link.publish("SETUP")
        try:
            loop = asyncio.get_running_loop()
            function = await loop.run_in_executor(
                None, Function, self._spec.payload, self._spec.max_multiplexing
            )
            await function.setup()
            openapi = function.openapi()
        except BaseException as error:
            traceback.print_exc()
            text = "".join(traceback.format_exception_only(type(error), error)).strip()
            self._link.publish("FAILED", error=text, traceback=traceback.format_exc())
            await asyncio.sleep(FAREWELL)
            self._ending.set()
            return
        self._app.function = function
        self._link.publish("IDLE", openapi=openapi)

    async def _watch(self) -> None:
        """End when no gateway has been connected for `orphan_timeout` seconds."""
        while True:
            await asyncio.sleep(1)
            alone = time.monotonic() - self._link.last_seen
            if not self._link.gateways and alone > self._spec.orphan_timeout:
                self._ending.set()

    async def _drain(self) -> None:
        self._app.draining = True
        self._link.publish("DRAINING")
        while self._app.in_flight:
            await asyncio.sleep(0.01)
        with contextlib.suppress(OSError):
            Path(self._spec.socket).unlink()


def exit_now() -> None:
    """End this process with its buffers written but without waiting for the user's threads."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
