"""The gateway process: lock the state folder, listen, publish the address, serve, end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from fal_notebook import __version__, discovery, settings, state_lock
from fal_notebook.exceptions import FalNotebookError
from fal_notebook.gateway import clock, limits, paths
from fal_notebook.gateway.app import GatewayApp
from fal_notebook.gateway.bridge import RunnersOnly
from fal_notebook.gateway.gateway import Gateway
from fal_notebook.gateway.logs import bounds
from fal_notebook.gateway.operations import apps, blobs, cost, credentials, errors, history
from fal_notebook.gateway.operations import secrets as stored_secrets
from fal_notebook.gateway.ports import listen
from fal_notebook.gateway.protocol import BoundedProtocol
from fal_notebook.gateway.storage.expiry import EXPIRY
from fal_notebook.runner.program import new_loop
from fal_notebook.runner.server import Server

# How long runners may drain when the gateway is asked to stop with them.
STOP_GRACE = 15.0
# How long to try for the state folder, which others lock for a moment to see if it is free.
TAKE_TIMEOUT = 0.5
# How often the state folder, and the address in it, is looked for.
LOOK_PERIOD = 1.0
# How long requests may finish when it ends without its runners.
FINISH_GRACE = 5.0
# So long a completed request of the queue is kept (seconds).
RESULTS_KEPT = 7 * 24 * 3600
# What is not used any more is looked for so often at least (seconds); oftener when it is kept for
# a short time: then it stays a quarter longer at most.
LONGEST_PERIOD = 3600.0

_LOG = logging.getLogger(__name__)


def main() -> None:
    """Run the gateway of the state folder until it is asked to stop; exit 1 if there is one."""
    os.umask(0o077)
    limits.raise_files()
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("uvicorn.error").addFilter(_is_news)
    state = settings.state_folder()
    held = state_lock.take(state, TAKE_TIMEOUT)
    if held is None:
        sys.exit(f"a gateway already runs on {state}; stop it with: fal-notebook gateway stop")
    paths.make_private(state)
    loop = new_loop()
    asyncio.set_event_loop(loop)
    refused = ""
    try:
        loop.run_until_complete(_serve(state, held))
    except FalNotebookError as error:
        refused = str(error)
        print(refused, file=sys.stderr, flush=True)
    # Nothing lets go of the folder before the process has ended; and that waits for no thread,
    # for one may be asking an engine that does not answer.
    logging.shutdown()
    os._exit(1 if refused else 0)


def _is_news(record: logging.LogRecord) -> bool:
    """Leave out that an answer was cut: so it ends for callers that have gone or are too slow."""
    return record.msg != "ASGI callable returned without completing response."


async def _serve(state: Path, held: int) -> None:
    kept = Kept.read()
    listener = listen("port", settings.setting("port", 0), state / "port")
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    token = secrets.token_urlsafe(32)
    info = discovery.GatewayInfo(url, token, os.getpid(), discovery.PROTOCOL, __version__)
    gateway = Gateway(state, info)
    gateway.vault.check()
    gateway.targets.local.adopt_orphans()
    app = GatewayApp(gateway)
    gateway.tls.app, gateway.bridge.app = app, RunnersOnly(app, gateway.auth, url)
    await gateway.take_up_runners()
    credentials.learn(gateway)
    gateway.restore()
    await gateway.take_up_queue()
    housekeeping = asyncio.ensure_future(_keep_house(gateway, kept))
    webhooks = asyncio.ensure_future(gateway.webhooks.run())
    bounding = asyncio.ensure_future(bounds.watch(state, gateway.runner_ids, gateway.scrubber.look))
    trimming = asyncio.ensure_future(bounds.watch_all(state, gateway.store, kept.logs))
    warming = asyncio.ensure_future(gateway.targets.local.warm(sys.executable))
    gateway.tls.reopen()
    server = Server(app, BoundedProtocol, limits.IDLE_TIME)
    serving = asyncio.ensure_future(server.serve([listener]))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, gateway.request_stop, True)
    discovery.write(state, info)
    haunting = asyncio.ensure_future(_stay_found(gateway, held))
    await gateway.stop_requested.wait()
    haunting.cancel()
    discovery.withdraw(state, info)
    if gateway.keep_runners:
        await gateway.finish_requests(FINISH_GRACE)
    else:
        await gateway.stop_runners(STOP_GRACE)
    for task in (warming, housekeeping, webhooks, bounding, trimming):
        task.cancel()
    await gateway.close()
    await gateway.tls.close()
    await gateway.bridge.close()
    server.stop()
    await serving


async def _stay_found(gateway: Gateway, held: int) -> None:
    """Keep the address in the state folder; end with all runners when that was removed."""
    while state_lock.is_on(held, gateway.state):
        if discovery.published(gateway.state) != gateway.info:
            with contextlib.suppress(OSError):  # a full disk: later
                discovery.write(gateway.state, gateway.info)
        await asyncio.sleep(LOOK_PERIOD)
    _LOG.warning("%s was removed or replaced: the gateway ends with its runners", gateway.state)
    gateway.request_stop(keep_runners=False)


@dataclass(frozen=True)
class Kept:
    """How long results and files are kept (seconds), and how much of logs (bytes)."""

    results: int
    files: int
    logs: int

    @staticmethod
    def read() -> Kept:
        """Return what the settings say; a wrong one is refused before anything is served."""
        return Kept(
            settings.setting("results_kept", RESULTS_KEPT, least=0),
            settings.setting("storage_expiry", EXPIRY, least=0),
            settings.setting("logs_max_bytes", bounds.MOST_OF_ALL, least=0),
        )


async def _keep_house(gateway: Gateway, kept: Kept) -> None:
    """Remove what is no longer shown or used, now and again and again."""
    period = house_period(kept.results, kept.files)
    while True:
        try:
            apps.prune(gateway)
            blobs.prune(gateway)
            errors.prune(gateway)
            cost.prune(gateway)
            history.prune(gateway)
            stored_secrets.prune(gateway)
            gateway.tls.renew()
            gateway.storage.files.prune()
            await asyncio.to_thread(
                bounds.trim, gateway.state, gateway.store.ended_runners(), kept.logs
            )
            await gateway.queue.records.forget(clock.ago(kept.results))
            gateway.store.checkpoint()
        except (FalNotebookError, OSError):
            _LOG.exception("old runners and payloads were not removed")
        await asyncio.sleep(period)


def house_period(results_kept: int, storage_expiry: int) -> float:
    """Return after how many seconds to look again; with `storage_expiry` 0 files stay."""
    shortest = min(results_kept, storage_expiry or EXPIRY)
    return min(LONGEST_PERIOD, max(1.0, shortest / 4))


if __name__ == "__main__":
    main()
