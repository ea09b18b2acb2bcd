"""What a runner is started with and leaves behind: its spec, variables, own key, files."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import hmac
import secrets
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from fal_notebook import settings
from fal_notebook.backends.base import Placement, Started
from fal_notebook.backends.targets import LOCAL, Targets
from fal_notebook.exceptions import BuildError, StoreError
from fal_notebook.gateway import paths
from fal_notebook.gateway.fleet import Runner
from fal_notebook.gateway.gpus import Gpus
from fal_notebook.gateway.metrics_ports import MetricsPorts
from fal_notebook.gateway.store import Revision, RunnerRow, Store
from fal_notebook.gateway.upstream import Pool
from fal_notebook.machines import MachineType, gpus_here
from fal_notebook.runner.secret_forms import RUNNER_KEY_PREFIX
from fal_notebook.runner.spec import DATA, RunnerSpec

# Without a gateway for this long a runner drains and ends (seconds; setting orphan_timeout).
ORPHAN_TIMEOUT = 60
METRICS_PORT = "METRICS_PORT"


class Launcher:
    """Starts the processes of runners and removes their files.

    Parameters
    ----------
    reach : callable
        Gives the gateway's URL as runners of a target know it.
    declared : callable
        Gives the variables and secrets that a revision declares, by name.
    open_tls : callable
        Opens the port with TLS, see `TlsPort.open`.
    registries : callable
        Gives the credentials of a revision's registries, by host.
    scrub : callable
        Masks secrets in the log of a runner that has ended.
    """

    def __init__(
        self,
        state: Path,
        store: Store,
        targets: Targets,
        reach: Callable[[str], Awaitable[str]],
        declared: Callable[[Revision], dict[str, str]],
        registries: Callable[[Revision], dict[str, Any]],
        open_tls: Callable[[], dict[str, Any]],
        scrub: Callable[[str], Awaitable[None]],
    ) -> None:
        self._state = state
        self._targets = targets
        self._reach = reach
        self._declared = declared
        self._registries = registries
        self._open_tls = open_tls
        self._scrub = scrub
        self._key_secret = store.note("runner_key", lambda: secrets.token_hex(32)).encode()
        self._orphan_timeout = settings.setting("orphan_timeout", ORPHAN_TIMEOUT, least=1)
        self.gpus = Gpus(gpus_here())
        self._metrics_ports = MetricsPorts()

    def runner_key(self, runner_id: str) -> str:
        """Return the secret half of a runner's own key; it is derived, so none is stored."""
        derived = hmac.new(self._key_secret, runner_id.encode(), hashlib.sha256).hexdigest()
        return RUNNER_KEY_PREFIX + derived

    async def place(
        self, runner: Runner, revision: Revision, on_wait: Callable[[str], None]
    ) -> None:
        """Take the GPUs that a runner of this revision needs, once they are free; see `Gpus`."""
        row = runner.row
        if count := revision.machine["gpus"]:
            await self.gpus.take(row.id, count, lambda: row.state == "PENDING", on_wait)

    def adopt(self, row: RunnerRow) -> None:
        """Know what a runner holds that outlived an earlier gateway."""
        self.gpus.hold(row.id, row.process.get("gpus", ()))
        if "metrics_port" in row.process:
            self._metrics_ports.hold(row.id, row.process["metrics_port"])

    async def start(self, runner: Runner, revision: Revision, on_pull: Callable[[], None]) -> None:
        """Start a runner's process and note where it is; `on_pull` is as in `Placement`.

        Raises
        ------
        BuildError
            When it could not be started.
        """
        try:
            url = await self._reach(revision.target)
            spec = self._spec(runner.row, revision, url)
            backend = self._targets[revision.target]
            gpus = self.gpus.of(runner.row.id)
            registries = functools.partial(self._registries, revision)
            placement = _placement(revision, gpus, registries, on_pull)
            started = await backend.start(spec, revision.environment, placement)
        except OSError as error:  # a full disk, a folder that cannot be made
            raise BuildError(f"the runner could not be started: {error}") from error
        runner.row.address, runner.row.process = started.address, started.process
        runner.row.process["gpus"] = gpus
        if revision.options["metrics_port"] is not None:
            port = int(spec.environment[METRICS_PORT])
            told = {"metrics_port": port, "metrics": f"tcp:{_host(started)}:{port}"}
            runner.row.process.update(told)
        runner.pool = Pool(started.address)

    async def clean_up(self, row: RunnerRow) -> None:
        """Leave of a runner that has ended its log only, without secrets; not its folder."""
        self.gpus.give_back(row.id)
        self._metrics_ports.give_back(row.id)
        with contextlib.suppress(OSError, StoreError):
            await self._scrub(row.id)
        with contextlib.suppress(OSError):  # it could not even be made
            folder = paths.runner_folder(self._state, row.id)
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    def _spec(self, row: RunnerRow, revision: Revision, url: str) -> RunnerSpec:
        files = revision.app_files
        return RunnerSpec(
            runner_id=row.id,
            secret=row.secret,
            address=f"unix:{self._targets.local.address_folder / row.id}.sock",
            state=str(self._state),
            payload=str(paths.blob(self._state, revision.payload)),
            app_files=str(paths.blob(self._state, files)) if files else "",
            log=str(paths.runner_log(self._state, row.id)),
            folder=str(paths.runner_folder(self._state, row.id)),
            environment=self._environment(row, revision, url),
            secrets=revision.options["secrets"] or [],
            max_multiplexing=revision.options["max_multiplexing"],
            orphan_timeout=self._orphan_timeout,
            grace=revision.options["termination_grace_period_seconds"],
            exposed_port=revision.options["exposed_port"] if revision.direct else None,
            fixed_port=revision.manifest.get("fixed_port", False),
            umask=paths.umask(),
            data_mounts=revision.options["data_mounts"] or [DATA],
        )

    def _environment(self, row: RunnerRow, revision: Revision, url: str) -> dict[str, str]:
        data = paths.data_folder(self._state, row.owner)
        key = f"{row.id}:{self.runner_key(row.id)}"
        return {
            **self._targets[revision.target].inherited(revision.environment),
            "FAL_APP_NAME": row.app,
            "FAL_APP_ID": f"{row.owner}/{row.app}",
            "FAL_JOB_ID": row.id,
            "FAL_REGION": row.region,
            "FAL_RUNNER_ID": row.id,
            "FAL_RUNNER_STATE": "SETUP",
            "FAL_NOTEBOOK_URL": url,
            "FAL_NOTEBOOK_DOWNLOAD_ALLOW": settings.setting("download_allow", ""),
            "FAL_DATA_DIR": str(data),
            "HF_HOME": str(data / ".cache" / "huggingface"),
            "FAL_KEY": key,
            "FAL_NOTEBOOK_KEY": key,  # for our own client: a secret may be called FAL_KEY
            **(self._for_sdk(revision.target) if revision.manifest.get("kind") == "sdk" else {}),
            **self._declared(revision),
            **self._metrics_port(row.id, revision),
        }

    def _metrics_port(self, runner: str, revision: Revision) -> dict[str, str]:
        """Return the variable that says where the gateway asks a runner for its metrics.

        On this machine each has a port of its own; a container has all of them.
        """
        port: int | None = revision.options["metrics_port"]
        if port is not None and revision.target == LOCAL:
            port = self._metrics_ports.take(runner, port)
        return {METRICS_PORT: str(port)} if port else {}

    def _for_sdk(self, target: str) -> dict[str, str]:
        """Return what turns fal's own SDK to this gateway; it insists on https.

        That port is this machine's own: in a container the SDK is kept from fal's servers, which
        would get the runner's key.
        """
        if target != LOCAL:
            return {"FAL_REST_HOST": "localhost:9", "FAL_CDN_V3_HOST": "https://localhost:9"}
        tls = self._open_tls()
        return {
            "FAL_REST_HOST": f"localhost:{tls['port']}/rest",
            "FAL_CDN_V3_HOST": f"https://localhost:{tls['port']}/cdn",
            "SSL_CERT_FILE": tls["bundle"],
        }


def _host(started: Started) -> str:
    """Return the host on which a runner that was started has its ports."""
    if started.address.startswith("unix:"):
        return "127.0.0.1"
    return started.process.get("host") or started.address[len("tcp:") :].rpartition(":")[0]


def _placement(
    revision: Revision,
    gpus: tuple[str, ...],
    registries: Callable[[], dict[str, Any]],
    on_pull: Callable[[], None],
) -> Placement:
    machine = MachineType(**revision.machine)
    whose = revision.owner, revision.app, revision.id
    return Placement(*whose, machine, gpus, registries, on_pull)
