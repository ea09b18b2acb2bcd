"""The gateway's parts in one place: who owns what, and how they are tied together."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import secrets
import stat
import tempfile
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fal_notebook import settings
from fal_notebook.backends.base import Left
from fal_notebook.backends.targets import DOCKER, Targets
from fal_notebook.discovery import GatewayInfo
from fal_notebook.exceptions import BuildError
from fal_notebook.gateway import paths, plan, schemas, tracing, transitions
from fal_notebook.gateway.admission import Admission
from fal_notebook.gateway.auth import Auth, HostCheck
from fal_notebook.gateway.billing import Billing
from fal_notebook.gateway.bridge import BridgePort
from fal_notebook.gateway.controller import Controller
from fal_notebook.gateway.errors import Errors
from fal_notebook.gateway.events import Events
from fal_notebook.gateway.fleet import Fleet, Runner, SchedulingError
from fal_notebook.gateway.gauges import Gauges
from fal_notebook.gateway.launch import Launcher
from fal_notebook.gateway.lifecycle import Lifecycle
from fal_notebook.gateway.logs.redaction import Redaction
from fal_notebook.gateway.logs.scrubbing import Scrubber
from fal_notebook.gateway.metrics import Metrics
from fal_notebook.gateway.operations import credentials
from fal_notebook.gateway.proxy import Proxy
from fal_notebook.gateway.queue.queue import Queue
from fal_notebook.gateway.storage.routes import StorageRoutes
from fal_notebook.gateway.store import App, Key, Revision, RunnerRow, Store
from fal_notebook.gateway.tally import Tally
from fal_notebook.gateway.tls import TlsPort
from fal_notebook.gateway.vault import Vault
from fal_notebook.gateway.webhooks import message
from fal_notebook.gateway.webhooks.delivery import Deliverer
from fal_notebook.gateway.webhooks.sender import Sender
from fal_notebook.gateway.webhooks.signing import Signer
from fal_notebook.gateway.webhooks.table import DeliveryTable
from fal_notebook.machines import MachineType, this_host
from fal_notebook.runner.log_file import LogFile

MAX_BODY = 100 * 1024 * 1024
# A base folder of this many bytes leaves room for fal-…/….sock within macOS' 103.
LONGEST_BASE = 70
# So long a gateway that starts waits for what an engine has to say (seconds).
LONGEST_WAIT = 2.0


@dataclass(eq=False)
class Deployment:
    """A deploy under way: whose, the scaling when it began, the runner that proves it."""

    revision: Revision
    notebook: str
    scaling: dict[str, Any]
    task: asyncio.Task[None] = field(init=False)
    runner: Runner | None = None
    reason: str = ""

    def cancel(self, reason: str) -> None:
        """End it; what runs stays."""
        self.reason = self.reason or reason
        self.task.cancel()

    def is_for(self, digest: str, target: str) -> bool:
        """Say whether it goes on and deploys this."""
        wanted = digest, target
        return (self.revision.digest, self.revision.target) == wanted and not self.reason


class Gateway:
    """Everything that lives as long as the process does.

    Parameters
    ----------
    state : Path
        The state folder; the caller holds its lock.
    info : GatewayInfo
        URL and token under which it will be found.
    """

    def __init__(self, state: Path, info: GatewayInfo) -> None:
        self.state = state
        self.info = info
        self.owner = settings.owner()
        self.host = this_host()
        self.max_body = int(settings.setting("max_body", MAX_BODY, least=1))
        self.stop_requested = asyncio.Event()
        self.keep_runners = True
        self.fleets: dict[tuple[str, str], Fleet] = {}
        self.deployments: dict[tuple[str, str], Deployment] = {}
        self._ending: list[asyncio.Future[Any]] = []
        self._reaching: asyncio.Future[None] | None = None
        schemas.examine(state)
        self.store = Store(state / "store.db")
        # By which outputs know whether it is theirs; it outlives the process, and is no secret.
        self.id = self.store.note("gateway_id", functools.partial(secrets.token_hex, 8))
        self.events = Events(self.store)
        self.vault = Vault(state)
        self.redaction = Redaction(self.store, self.vault)
        self.scrubber = Scrubber(state, self.store, self.redaction)
        self.errors = Errors(self.store, self.events.errors, self.redaction)
        self.tally = Tally(self.store)
        self.targets = Targets(state, sockets_folder(self.store), self._try_again)
        self.host_check = HostCheck(int(info.url.rsplit(":", 1)[1]))
        self.tls = TlsPort(state, self.host_check)
        self.bridge = BridgePort(state, self.host_check)
        registries = functools.partial(credentials.registries, self)
        given = self.declared, registries, self.tls.open, self.scrubber.finish
        launcher = Launcher(state, self.store, self.targets, self.reached_at, *given)
        self.gpus = launcher.gpus
        self.billing = Billing(self.store)
        parts = self.store, self.targets, launcher, self._poke, self.redaction, self.billing
        self.lifecycle = Lifecycle(*parts)
        self.controller = Controller(self.lifecycle.start, self.lifecycle.stop)
        self.metrics = Metrics()
        self.metrics.add(Gauges(self.fleets.values, self.targets.stats, self.gpus))
        self.auth = Auth(self.owner, info.token, launcher.runner_key, self._runner_owner)
        self.auth.load(self.store.select(Key))
        self.admission = Admission(self._find, self.auth)
        self.tracing = tracing.start(self.redaction)
        self.proxy = Proxy(self.admission, self.lifecycle.kill, self.max_body, self.tracing)
        self.queue = Queue(state, self.lifecycle.kill, self.redaction, self.tracing)
        self.storage = StorageRoutes.of_state(state, self.store, self.auth)
        self.signer = Signer(self.store, self.vault)
        allow = settings.setting("webhook_allow", "")
        sender = Sender(
            allow,
            self.signer,
            functools.partial(message.of_request, self.queue.records),
            functools.partial(message.trace_of, self.queue.records),
        )
        self.webhooks = Deliverer(DeliveryTable(self.queue.records.journal), sender)
        self.queue.on_webhook = self.webhooks.notify
        self.queue.records.lane_of = self.webhooks.lane_of

    def restore(self) -> None:
        """Serve what the store says is active; adopt runners that still live."""
        for app in self.store.select(App):
            revision = self.store.revision(app.revision)
            if revision is not None:
                self.activate(app, revision)
        for revision in self.store.select(Revision, "state = 'PROVING'"):
            self._give_up(revision, "the gateway was stopped during the deploy; deploy again")
        for row in self.store.select(RunnerRow, "state != 'TERMINATED'"):
            self._adopt(row)

    async def reached_at(self, target: str) -> str:
        """Return the URL under which runners of a target reach this gateway."""
        host = await self.targets[target].gateway_host()
        return self.bridge.open(host) if host else self.info.url

    async def take_up_runners(self) -> None:
        """Let backends look for the runners that the last gateway left, before `restore`."""
        rows = self.store.select(RunnerRow, "state != 'TERMINATED'")
        await self.targets.take_up(
            Left(row.id, row.process, LogFile.of(paths.runner_log(self.state, row.id), row.secret))
            for row in rows
        )
        if any(row.process.get("target") == DOCKER for row in rows):
            # An engine that hangs holds no gateway; once it answers its containers have one.
            self._reaching = asyncio.ensure_future(self._reach_containers())
            await asyncio.wait([self._reaching], timeout=LONGEST_WAIT)

    async def _reach_containers(self) -> None:
        with contextlib.suppress(BuildError):  # no engine: no container either
            await self.reached_at(DOCKER)

    async def take_up_queue(self) -> None:
        """Go on with the requests that the last gateway accepted and did not complete."""
        await self.queue.recover(self._find)

    def _give_up(self, revision: Revision, reason: str) -> None:
        """Fail a deploy that no gateway works on; whoever follows it hears so."""
        revision.state, revision.error = "FAILED", reason
        data = {"revision": revision.id, "step": "failed", "message": reason}
        with self.store.transaction():
            self.store.put(revision)
            self.store.emit("deploy", revision.owner, revision.app, data)

    def fleet(self, owner: str, name: str) -> Fleet:
        """Return the fleet of an app, made if there is none yet."""
        fleet = self.fleets.get((owner, name))
        if fleet is None:
            metrics = self.metrics.for_app(f"{owner}/{name}")
            poke, nudge = self.controller.poke, self.controller.nudge
            fleet = self.fleets[owner, name] = Fleet(
                owner, name, metrics, poke, nudge, self.queue.run
            )
            fleet.on_sample = lambda sample: self.events.sample(owner, name, sample)
            fleet.on_error = self.errors.record
            fleet.on_answer = self.tally.of(fleet)
        return fleet

    def runner_ids(self) -> list[str]:
        """Return the ids of all runners that live."""
        return [runner for fleet in self.fleets.values() for runner in fleet.runners]

    def activate(self, app: App, revision: Revision) -> None:
        """Let the fleet of an app serve a revision, or serve it with changed options."""
        options = plan.effective(app, revision)
        scaling = plan.scaling(options, MachineType(**revision.machine), self.host)
        self.fleet(app.owner, app.name).configure(revision, options, scaling)

    def secrets(self, env: str, names: Collection[str]) -> dict[str, str]:
        """Return the values of secrets of an environment by name.

        Raises
        ------
        NotFoundError
            When one of them is not stored.
        """
        return {
            name: self.vault.decrypt(self.store.secret(env, name).value, f"the secret {name}")
            for name in names
        }

    def declared(self, revision: Revision) -> dict[str, str]:
        """Return the variables of a revision's runners: passed on by the kernel, and secrets."""
        self.redaction.current()  # what is replaced or deleted later, it knows from here
        passed = {
            name: self.vault.decrypt(text, f"the variable {name} of pass_env", "deploy again")
            for name, text in revision.variables.items()
        }
        return {**passed, **self.secrets(revision.env, revision.options["secrets"] or ())}

    def forget(self, fleet: Fleet) -> None:
        """Take an app off the map."""
        del self.fleets[fleet.owner, fleet.name]
        self.controller.forget(fleet)
        fleet.on_error = lambda failure: None  # another app may have its name by then
        self.errors.forget(fleet.owner, fleet.name)
        self.queue.drop(fleet)

    def request_stop(self, keep_runners: bool) -> None:
        """End the process soon; runners stay for the next gateway or are stopped too."""
        self.keep_runners = keep_runners
        self.stop_requested.set()

    async def stop_runners(self, grace: float) -> None:
        """Drain every runner; what has not ended after `grace` seconds is killed."""
        self.controller.close()
        await self._cancel_deployments()
        stop = SchedulingError(503, "runner_scheduling_failure", "the gateway is stopping")
        for fleet in self.fleets.values():
            fleet.waiting.hold_queue()
            fleet.refuse(stop)
            fleet.tried()
        await self.lifecycle.stop_all("the gateway stops", grace)

    async def finish_requests(self, grace: float) -> None:
        """Wait until no request is in flight, at most `grace` seconds; new ones are refused."""
        for fleet in self.fleets.values():
            fleet.waiting.hold_queue()
        deadline = time.monotonic() + grace
        runners = [r for fleet in self.fleets.values() for r in fleet.runners.values()]
        while any(r.in_flight for r in runners) and time.monotonic() < deadline:
            await asyncio.sleep(0.02)

    async def _cancel_deployments(self) -> None:
        deployments = list(self.deployments.values())
        for deployment in deployments:
            deployment.cancel("the gateway was stopped during the deploy")
        await asyncio.gather(*(d.task for d in deployments), return_exceptions=True)

    async def close(self) -> None:
        """Release everything; runners live on for the next gateway."""
        self.controller.close()
        await self._cancel_deployments()
        self.events.close()
        await self.queue.close()
        await self.lifecycle.close()
        if self._reaching is not None:
            self._reaching.cancel()
        self.errors.close()
        self.billing.close()
        self.tally.close()
        self.storage.files.close()
        await self.targets.close()
        with contextlib.suppress(OSError):  # not empty: runners live on
            self.targets.local.address_folder.rmdir()
        self.store.close()
        await self.tracing.close()

    def _adopt(self, row: RunnerRow) -> None:
        """Take a runner over; one whose revision does not serve, or is gone, is ended."""
        revision, app = self.store.revision(row.revision), self.store.app(row.owner, row.app)
        if revision is None:
            row.ended_at = time.time()
            transitions.bury(self.store, row, "the app was deleted")
            if row.process:
                kill = self.targets.of(row.process).kill(row.process, row.id)
                self._ending.append(asyncio.ensure_future(kill))
            return
        serves = app is not None and app.revision == row.revision
        if row.state in transitions.OVER and not (serves and row.failures):
            transitions.bury(self.store, row, row.cause)
            return
        fleet = self.fleet(row.owner, row.app)
        if row.state in transitions.OVER:
            self.lifecycle.back_off(fleet, row)
            return
        self.lifecycle.adopt(fleet, row, revision)
        if not serves:
            self.lifecycle.stop(fleet.runners[row.id], "its revision does not serve")
        if app is None:
            self.forget(fleet)

    def _try_again(self, target: str) -> None:
        """Start runners again that could not be started on a target, whose engine answers again."""
        if target == DOCKER and self._reaching is not None and self._reaching.done():
            self._reaching = asyncio.ensure_future(self._reach_containers())
        for fleet in self.fleets.values():
            if fleet.revision is not None and fleet.revision.target == target:
                fleet.try_again()

    def _poke(self, fleet: Fleet) -> None:
        self.controller.poke(fleet)

    def _find(self, owner: str, name: str) -> Fleet | None:
        fleet = self.fleets.get((owner, name))
        return fleet if fleet is not None and fleet.revision is not None else None

    def _runner_owner(self, runner_id: str) -> str | None:
        return next((f.owner for f in self.fleets.values() if runner_id in f.runners), None)


def sockets_folder(store: Store) -> Path:
    """Return the 0700 folder of the runners' sockets, recorded in the store.

    It lies outside the state folder because a socket's path ends at 107 bytes (macOS: 103). One
    that is not ours alone is not used: after a reboot somebody else may have made it.
    """
    folder = Path(store.note("sockets", _make_sockets_folder))
    if not _is_private(folder):
        folder = Path(store.set_note("sockets", _make_sockets_folder()))
    return folder


def _is_private(folder: Path) -> bool:
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077


def _make_sockets_folder() -> str:
    preferred = os.environ.get("XDG_RUNTIME_DIR", "")
    if not os.path.isdir(preferred):
        preferred = tempfile.gettempdir()
    base = preferred if len(os.fsencode(preferred)) <= LONGEST_BASE else "/tmp"
    return tempfile.mkdtemp(prefix="fal-", dir=base)
