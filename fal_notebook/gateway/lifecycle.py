"""The life of each runner, told once from top to bottom: start, watch its link, clean up."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import logging
import secrets
import shutil
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Coroutine
from pathlib import Path
from typing import Any

from fal_notebook import settings
from fal_notebook.backends.base import Backend
from fal_notebook.exceptions import BuildError, DeployError, FalNotebookError, StoreError
from fal_notebook.gateway import paths
from fal_notebook.gateway.fleet import STARTUP_TIMEOUT, Fleet, Runner
from fal_notebook.gateway.headers import request_head
from fal_notebook.gateway.store import Revision, RunnerRow, Store
from fal_notebook.gateway.upstream import Connection, Pool, UpstreamError
from fal_notebook.runner.logs import RECORD
from fal_notebook.runner.spec import LINK, RunnerSpec

# How often an opening socket is tried while its runner starts to listen.
CONNECT_PERIOD = 0.003
# Without a gateway for this long a runner drains and ends (seconds; setting orphan_timeout).
ORPHAN_TIMEOUT = 60
# How long killed runners may take to be gone.
KILL_GRACE = 5.0
# A runner that ends by itself earlier than this, before any request, has failed to start.
PROVEN_AFTER = 10.0

ENDING = ("DRAINING", "TERMINATING", "TERMINATED")
_LOG = logging.getLogger(__name__)


class Lifecycle:
    """Starts, watches and ends runners; keeps their rows in step.

    Parameters
    ----------
    declared : callable
        Gives the variables and secrets that a revision declares, by name.
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
        declared: Callable[[Revision], dict[str, str]],
    ) -> None:
        self._state = state
        self._store = store
        self._backend = backend
        self._base_url = base_url
        self._on_change = on_change
        self._declared = declared
        self._key_secret = store.note("runner_key", lambda: secrets.token_hex(32)).encode()
        self._orphan_timeout = settings.setting("orphan_timeout", ORPHAN_TIMEOUT)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._living: dict[Runner, Fleet] = {}

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
        runner = Runner(row, since=row.created_at, proving=proving)
        self._add(fleet, runner, revision)
        self._record(fleet, runner, "PENDING", "")
        self._spawn(self._live(fleet, runner, revision))
        return runner

    def adopt(self, fleet: Fleet, row: RunnerRow, revision: Revision) -> None:
        """Take over a runner that outlived an earlier gateway, or record that it did not.

        It serves again once its link says that it lives; its keep_alive starts anew, for nobody
        knows when its last request was.
        """
        ending = row.state in ("DRAINING", "TERMINATING")
        runner = Runner(row, since=row.ready_at or row.created_at)
        if row.ready_at is not None and not ending:
            runner.last_request_at = time.time()
            row.state = "SETUP"
        self._add(fleet, runner, revision)
        self._spawn(self._live(fleet, runner, revision, adopted=True))
        if ending:
            self._spawn(self._stop(fleet, runner))

    def stop(self, fleet: Fleet, runner: Runner, cause: str) -> None:
        """Drain a runner and end it; after the grace it is killed."""
        if runner.row.state in ENDING:
            return
        self._record(fleet, runner, "DRAINING", cause)
        self._spawn(self._stop(fleet, runner))

    def kill(self, fleet: Fleet, runner: Runner, cause: str) -> None:
        """End a runner at once, with what it has in flight."""
        if runner.row.state in ("TERMINATING", "TERMINATED"):
            return
        self._record(fleet, runner, "TERMINATING", cause)
        self._spawn(self._backend.kill(runner.row.process, runner.row.id))

    async def stop_all(self, cause: str, grace: float) -> None:
        """Drain every runner, also of deleted apps; kill after `grace` seconds what is left."""
        for runner, fleet in list(self._living.items()):
            self.stop(fleet, runner, cause)
        for step in (grace, KILL_GRACE):
            ending = [asyncio.ensure_future(runner.ended.wait()) for runner in self._living]
            if ending:
                _, late = await asyncio.wait(ending, timeout=step)
                for task in late:
                    task.cancel()
            for runner, fleet in list(self._living.items()):
                self.kill(fleet, runner, f"{cause}, and the runner did not end in time")

    def runner_key(self, runner_id: str) -> str:
        """Return the secret half of a runner's own key; it is derived, so none is stored."""
        return hmac.new(self._key_secret, runner_id.encode(), hashlib.sha256).hexdigest()

    async def close(self) -> None:
        """Stop watching; runners live on and are adopted by the next gateway."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- one life ----------------------------------------------------------------------------
    async def _live(
        self, fleet: Fleet, runner: Runner, revision: Revision, adopted: bool = False
    ) -> None:
        """Follow a runner from its start, or from its adoption, to its end."""
        error = ""
        lost = adopted and not self._backend.alive(runner.row.process)
        timer = self._startup_timer(fleet, runner, revision)
        try:
            if not adopted:
                await self._start(fleet, runner, revision)
            if runner.row.process and runner.row.state != "TERMINATING":
                await self._watch(fleet, runner, timer)
        except FalNotebookError as refusal:
            error = str(refusal)
        except Exception as bug:
            _LOG.exception("runner %s is ended for an error of the gateway", runner.row.id)
            error = f"the gateway failed: {bug!r}"
        finally:
            timer.cancel()
        self._leave(fleet, runner)
        ending = await self._backend.kill(runner.row.process, runner.row.id)
        with contextlib.suppress(OSError):  # it could not even be made
            folder = paths.runner_folder(self._state, runner.row.id)
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        how = f" ({ending})" if ending else ""
        if runner.row.state == "TERMINATING" and ending not in ("", "SIGKILL", "exit status 0"):
            runner.row.cause += how if runner.row.cause else ""
        if not lost:  # what happened without a gateway is no failed start
            self._failed(fleet, runner, error or f"the runner ended while it was starting{how}")
        self._ended(fleet, runner, error or f"the runner ended by itself{how}")

    async def _start(self, fleet: Fleet, runner: Runner, revision: Revision) -> None:
        try:
            spec = self._spec(runner, revision)
            started = await self._backend.start(spec, revision.environment)
        except OSError as error:  # a full disk, a folder that cannot be made
            raise BuildError(f"the runner could not be started: {error}") from error
        runner.row.address, runner.row.process = started.address, started.process
        runner.pool = Pool(started.address)
        if runner.row.state == "PENDING":
            self._record(fleet, runner, "SETUP", "")

    def _startup_timer(
        self, fleet: Fleet, runner: Runner, revision: Revision
    ) -> asyncio.TimerHandle:
        timeout = float(revision.options["startup_timeout"] or STARTUP_TIMEOUT)
        loop = asyncio.get_running_loop()
        return loop.call_later(timeout, self._startup_timeout, fleet, runner, timeout)

    async def _watch(self, fleet: Fleet, runner: Runner, timer: asyncio.TimerHandle) -> None:
        """Follow the runner's link until it closes, or until the runner is to be killed."""
        # Once its link closes it has ended.
        with contextlib.suppress(UpstreamError, OSError):
            async with contextlib.aclosing(self._link(runner)) as lines:
                async for line in lines:
                    self._follow(fleet, runner, line)
                    if line["state"] != "SETUP":
                        timer.cancel()
                    if line["state"] == "FAILED":
                        return

    def _leave(self, fleet: Fleet, runner: Runner) -> None:
        """Let no request go to a runner that has ended; was it of no use, that is a failure."""
        if runner.row.state != "IDLE":
            return
        age = time.time() - (runner.row.ready_at or 0)
        if age < PROVEN_AFTER and not runner.in_flight and runner.last_request_at is None:
            error = f"the runner ended by itself {age:.1f} s after it was ready"
            fleet.failed(error, runner.row.created_at)
        self._record(fleet, runner, "TERMINATING", "")

    def _follow(self, fleet: Fleet, runner: Runner, line: dict[str, Any]) -> None:
        state = line["state"]
        if state == "FAILED":
            self._failed(fleet, runner, line["error"])
        elif state == "IDLE" and runner.live:
            self._became_ready(fleet, runner, line["openapi"])
        elif state == "DRAINING":
            self.stop(fleet, runner, "the runner was told to end")

    def _became_ready(self, fleet: Fleet, runner: Runner, openapi: dict[str, Any]) -> None:
        runner.openapi = openapi
        if runner.row.ready_at is None:
            runner.since = runner.row.ready_at = time.time()
            asyncio.get_running_loop().call_later(PROVEN_AFTER, fleet.proven, runner)
        self._record(fleet, runner, "IDLE", "")
        if not runner.ready.done():
            runner.ready.set_result(None)
        fleet.grant()

    def _failed(self, fleet: Fleet, runner: Runner, error: str) -> None:
        """Note that a runner did not come up; nothing for one that did, or was told to end."""
        if runner.ready.done() or runner.row.ready_at is not None:
            return
        runner.ready.set_exception(DeployError(error))
        runner.ready.exception()  # retrieved: nobody has to wait for it
        if runner.row.state not in ENDING:
            runner.row.cause = error
            if not runner.proving:
                fleet.failed(error, runner.row.created_at)

    def _startup_timeout(self, fleet: Fleet, runner: Runner, timeout: float) -> None:
        error = f"setup took longer than startup_timeout={timeout:g} s"
        self._failed(fleet, runner, error)
        self.kill(fleet, runner, error)

    async def _stop(self, fleet: Fleet, runner: Runner) -> None:
        """Ask for the end, say when the last request was sent, kill when the grace is spent."""
        release = asyncio.ensure_future(self._release(runner))
        try:
            await asyncio.wait_for(runner.ended.wait(), runner.grace)
        except asyncio.TimeoutError:
            self.kill(fleet, runner, "termination_grace_period_seconds is spent")
        finally:
            release.cancel()

    async def _release(self, runner: Runner) -> None:
        """Send SIGTERM, then ``end`` once nothing is on its way to the runner any more."""
        while not runner.row.process:  # it is just being started
            await asyncio.sleep(CONNECT_PERIOD)
        await self._backend.stop(runner.row.process, runner.row.id)
        while runner.in_flight:
            await asyncio.sleep(CONNECT_PERIOD)
        with contextlib.suppress(UpstreamError, OSError):
            connection = await runner.pool.acquire()
            connection.begin(self._request(runner, b"end"))
            await connection.head()
            connection.close()

    def _ended(self, fleet: Fleet, runner: Runner, cause: str) -> None:
        runner.row.ended_at = time.time()
        self._record(fleet, runner, "TERMINATED", runner.row.cause or cause)
        runner.pool.close()
        runner.ended.set()
        del fleet.runners[runner.row.id], self._living[runner]
        with contextlib.suppress(OSError):
            Path(runner.row.address.removeprefix("unix:")).unlink()
        self._on_change(fleet)

    # --- its parts ---------------------------------------------------------------------------
    async def _link(self, runner: Runner) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the runner's states until its link closes."""
        connection = await self._connect(runner)
        buffer = b""
        try:
            connection.begin(self._request(runner, b"states"))
            await connection.head()
            while data := await connection.read():
                *lines, buffer = (buffer + data).split(b"\n")
                for line in lines:
                    yield json.loads(line)
        finally:
            connection.close()

    def _request(self, runner: Runner, wanted: bytes) -> bytes:
        added = (
            (b"host", b"runner"),
            (b"content-length", b"0"),
            (b"x-fal-runner-secret", runner.row.secret.encode()),
            (LINK, wanted),
        )
        return request_head(b"POST", b"/", [], added, keep_authorization=False)

    async def _connect(self, runner: Runner) -> Connection:
        while True:
            try:
                return await runner.pool.acquire()
            except UpstreamError:
                if not self._backend.alive(runner.row.process):
                    raise
                await asyncio.sleep(CONNECT_PERIOD)

    def _add(self, fleet: Fleet, runner: Runner, revision: Revision) -> None:
        runner.grace = revision.options["termination_grace_period_seconds"]
        runner.pool = Pool(runner.row.address)
        fleet.runners[runner.row.id] = runner
        self._living[runner] = fleet

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
            orphan_timeout=self._orphan_timeout,
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
            **self._declared(revision),
        }

    def _record(self, fleet: Fleet, runner: Runner, state: str, cause: str) -> None:
        """Change a runner's state: one transaction, one event, one look of the controller."""
        row = runner.row
        row.state = state
        row.cause = cause or row.cause
        data = {"runner": row.id, "revision": row.revision, "state": state, "cause": row.cause}
        try:
            with self._store.transaction():
                self._store.put(row)
                self._store.emit("runner", row.owner, row.app, data)
        except StoreError:  # it serves all the same; its next state may be recorded again
            _LOG.exception("the state %s of runner %s was not recorded", state, row.id)
        fleet.changed()
        self._on_change(fleet)

    def _spawn(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _LOG.error("a task of a runner's life failed", exc_info=error)


def log_tail(path: Path, lines: int) -> list[str]:
    """Return the last lines of a runner's log as plain text."""
    if not path.is_file():
        return []
    # Not splitlines: it would split at RECORD too.
    text = path.read_text(errors="replace").rstrip("\n").split("\n")[-lines:]
    return [json.loads(x[1:])["message"] if x.startswith(RECORD) else x for x in text]
