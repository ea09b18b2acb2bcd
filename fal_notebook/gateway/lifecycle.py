"""The life of each runner, told once from top to bottom: start, watch its link, clean up."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import secrets
import shutil
import time
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from fal_notebook.backends.base import Backend
from fal_notebook.exceptions import DeployError
from fal_notebook.gateway import paths
from fal_notebook.gateway.fleet import STARTUP_TIMEOUT, Fleet, Runner, SchedulingError
from fal_notebook.gateway.store import Revision, RunnerRow, Store
from fal_notebook.gateway.upstream import Pool, UpstreamError
from fal_notebook.runner.logs import RECORD
from fal_notebook.runner.spec import RunnerSpec

# How often an opening socket is tried while its runner starts to listen.
CONNECT_PERIOD = 0.003


class Lifecycle:
    """Starts, watches and ends runners; keeps their rows in step.

    Parameters
    ----------
    on_change : callable
        Called with the fleet whenever one of its runners changed state.
    base_url : str
        The gateway's URL, for runners that call other apps.
    """

    def __init__(
        self,
        state: Path,
        store: Store,
        backend: Backend,
        base_url: str,
        on_change: Callable[[Fleet], None],
    ) -> None:
        self._state = state
        self._store = store
        self._backend = backend
        self._base_url = base_url
        self._on_change = on_change
        self._key_secret = store.note("runner_key", lambda: secrets.token_hex(32)).encode()
        self._tasks: set[asyncio.Task[None]] = set()

    # --- what others ask for -----------------------------------------------------------------
    def start(
        self, fleet: Fleet, revision: Revision | None = None, proving: bool = False
    ) -> Runner:
        """Start a runner of the fleet's active revision, or of `revision` to prove it."""
        revision = revision or fleet.revision
        assert revision is not None
        row = RunnerRow(
            id=uuid.uuid4().hex[:12],
            owner=revision.owner,
            app=revision.app,
            revision=revision.id,
            state="PENDING",
            secret=secrets.token_urlsafe(24),
            machine_type=revision.machine["name"],
        )
        runner = Runner(row, since=time.time(), proving=proving)
        fleet.runners[row.id] = runner
        self._record(fleet, runner, "PENDING", "")
        self._spawn(self._live(fleet, runner, revision))
        return runner

    def adopt(self, fleet: Fleet, row: RunnerRow, revision: Revision) -> None:
        """Take over a runner that outlived an earlier gateway, or record that it did not."""
        runner = Runner(row, since=row.ready_at or row.created_at)
        fleet.runners[row.id] = runner
        self._spawn(self._watch_to_end(fleet, runner, revision))
        if row.state in ("DRAINING", "TERMINATING"):
            self._spawn(self._stop(fleet, runner))

    def stop(self, fleet: Fleet, runner: Runner, cause: str) -> None:
        """Drain a runner and end it; after the grace it is killed."""
        if runner.row.state in ("DRAINING", "TERMINATING", "TERMINATED"):
            return
        self._record(fleet, runner, "DRAINING", cause)
        self._spawn(self._stop(fleet, runner))

    def kill(self, fleet: Fleet, runner: Runner, cause: str) -> None:
        """End a runner at once, with what it has in flight."""
        if runner.row.state in ("TERMINATING", "TERMINATED"):
            return
        self._record(fleet, runner, "TERMINATING", cause)
        if runner.row.process:
            self._spawn(self._backend.kill(runner.row.process, runner.row.id))

    def runner_key(self, runner_id: str) -> str:
        """Return the secret half of a runner's own key; it is derived, so none is stored."""
        return hmac.new(self._key_secret, runner_id.encode(), hashlib.sha256).hexdigest()

    async def close(self) -> None:
        """Stop watching; runners live on and are adopted by the next gateway."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- one life ----------------------------------------------------------------------------
    async def _live(self, fleet: Fleet, runner: Runner, revision: Revision) -> None:
        spec = self._spec(runner, revision)
        try:
            started = await self._backend.start(spec, revision.environment)
        except Exception as error:
            self._failed(fleet, runner, str(error))
            self._ended(fleet, runner)
            return
        runner.row.address, runner.row.process = started.address, started.process
        if runner.row.state == "PENDING":
            self._record(fleet, runner, "SETUP", "")
        await self._watch_to_end(fleet, runner, revision)

    async def _watch_to_end(self, fleet: Fleet, runner: Runner, revision: Revision) -> None:
        timeout = float(revision.options["startup_timeout"] or STARTUP_TIMEOUT)
        timer = asyncio.get_running_loop().call_later(
            timeout, self._startup_timeout, fleet, runner, timeout
        )
        runner.pool = Pool(runner.row.address)
        try:
            async for line in self._link(runner):
                self._follow(fleet, runner, line)
                if line["state"] != "SETUP":
                    timer.cancel()
        except (UpstreamError, OSError):
            pass
        timer.cancel()
        if runner.row.process:
            await self._backend.kill(runner.row.process, runner.row.id)
        shutil.rmtree(paths.runner_folder(self._state, runner.row.id), ignore_errors=True)
        if runner.row.state in ("PENDING", "SETUP"):
            self._failed(fleet, runner, "the runner ended while it was starting")
        self._ended(fleet, runner)

    def _follow(self, fleet: Fleet, runner: Runner, line: dict[str, Any]) -> None:
        state = line["state"]
        if state == "FAILED":
            self._failed(fleet, runner, line["error"])
        elif state == "IDLE" and runner.row.state in ("PENDING", "SETUP", "IDLE"):
            self._became_ready(fleet, runner, line["openapi"])
        elif state == "DRAINING" and runner.live:
            self._record(fleet, runner, "DRAINING", "the runner drains")

    def _became_ready(self, fleet: Fleet, runner: Runner, openapi: dict[str, Any]) -> None:
        runner.openapi = openapi
        if runner.row.state != "IDLE":
            runner.since = runner.row.ready_at = time.time()
            self._record(fleet, runner, "IDLE", "")
        fleet.failures = 0
        if not runner.ready.done():
            runner.ready.set_result(None)
        fleet.grant()
        self._on_change(fleet)

    def _failed(self, fleet: Fleet, runner: Runner, error: str) -> None:
        if runner.ready.done():
            return
        runner.ready.set_exception(DeployError(error))
        runner.ready.exception()  # retrieved: nobody has to wait for it
        runner.row.cause = error
        if not runner.proving:
            # Runners that started together and fail together are one failure.
            if runner.row.created_at > (fleet.last_failure_at or 0.0):
                fleet.failures += 1
            fleet.last_failure_at = time.time()
            fleet.last_error = error
            if not any(r.state in ("IDLE", "RUNNING") for r in fleet.active()):
                fleet.refuse(SchedulingError(503, "runner_scheduling_failure", error))

    def _startup_timeout(self, fleet: Fleet, runner: Runner, timeout: float) -> None:
        self._failed(fleet, runner, f"setup took longer than startup_timeout={timeout:g} s")
        self.kill(fleet, runner, "startup_timeout")

    async def _stop(self, fleet: Fleet, runner: Runner) -> None:
        revision = self._store.revision(runner.row.revision)
        grace = revision.options["termination_grace_period_seconds"] if revision else 5
        await self._backend.stop(runner.row.process, runner.row.id)
        try:
            await asyncio.wait_for(runner.ended.wait(), grace)
        except asyncio.TimeoutError:
            self.kill(fleet, runner, "the grace period is spent")

    def _ended(self, fleet: Fleet, runner: Runner) -> None:
        cause = runner.row.cause or "the runner ended by itself"
        runner.row.ended_at = time.time()
        self._record(fleet, runner, "TERMINATED", cause)
        runner.pool.close()
        runner.ended.set()
        del fleet.runners[runner.row.id]
        with contextlib.suppress(OSError):
            Path(runner.row.address.removeprefix("unix:")).unlink()
        self._on_change(fleet)

    # --- its parts ---------------------------------------------------------------------------
    async def _link(self, runner: Runner) -> AsyncIterator[dict[str, Any]]:
        """Yield the runner's states until its link closes."""
        connection = await self._connect(runner)
        secret = runner.row.secret.encode()
        connection.begin(
            b"GET /_fal/link HTTP/1.1\r\nhost: runner\r\nx-fal-runner-secret: "
            + secret
            + b"\r\n\r\n"
        )
        await connection.head()
        buffer = b""
        try:
            while data := await connection.read():
                *lines, buffer = (buffer + data).split(b"\n")
                for line in lines:
                    yield json.loads(line)
        finally:
            connection.close()

    async def _connect(self, runner: Runner) -> Any:
        while True:
            try:
                return await runner.pool.acquire()
            except UpstreamError:
                if not self._backend.alive(runner.row.process):
                    raise
                await asyncio.sleep(CONNECT_PERIOD)

    def _spec(self, runner: Runner, revision: Revision) -> RunnerSpec:
        row = runner.row
        folder = paths.runner_folder(self._state, row.id)
        return RunnerSpec(
            runner_id=row.id,
            secret=row.secret,
            socket=str(self._backend.address_folder / f"{row.id}.sock"),
            payload=str(paths.blob(self._state, revision.payload)),
            log=str(paths.runner_log(self._state, row.id)),
            folder=str(folder),
            environment=self._environment(row, revision),
            max_multiplexing=revision.options["max_multiplexing"],
        )

    def _environment(self, row: RunnerRow, revision: Revision) -> dict[str, str]:
        return {
            **self._backend.inherited(),
            "FAL_APP_NAME": row.app,
            "FAL_APP_ID": f"{row.owner}/{row.app}",
            "FAL_JOB_ID": row.id,
            "FAL_RUNNER_ID": row.id,
            "FAL_RUNNER_STATE": "SETUP",
            "FAL_NOTEBOOK_URL": self._base_url,
            "FAL_KEY": f"{row.id}:{self.runner_key(row.id)}",
            **revision.variables,
        }

    def _record(self, fleet: Fleet, runner: Runner, state: str, cause: str) -> None:
        """Change a runner's state: one transaction, one event, one look of the controller."""
        row = runner.row
        row.state = state
        row.cause = cause or row.cause
        with self._store.transaction():
            self._store.put(row)
            data = {"runner": row.id, "revision": row.revision, "state": state, "cause": row.cause}
            self._store.emit("runner", row.owner, row.app, data)
        fleet.changed()
        self._on_change(fleet)

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def log_tail(path: Path, lines: int) -> list[str]:
    """Return the last lines of a runner's log as plain text."""
    if not path.is_file():
        return []
    # Not splitlines: it would split at RECORD too.
    text = path.read_text(errors="replace").rstrip("\n").split("\n")[-lines:]
    return [json.loads(x[1:])["message"] if x.startswith(RECORD) else x for x in text]
