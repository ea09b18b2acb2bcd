"""The gateway process: take the lock, listen, publish the address, serve, end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import socket
import sys
import time
from pathlib import Path

from filelock import FileLock, Timeout

from fal_notebook import __version__, discovery, settings
from fal_notebook.exceptions import FalNotebookError, GatewayError
from fal_notebook.gateway.app import GatewayApp
from fal_notebook.gateway.gateway import Gateway
from fal_notebook.gateway.logs import bounds
from fal_notebook.gateway.operations import apps, blobs, errors
from fal_notebook.gateway.protocol import BoundedProtocol
from fal_notebook.runner.program import new_loop
from fal_notebook.runner.server import Server

# How long runners may drain when the gateway is asked to stop with them.
STOP_GRACE = 15.0
# How long requests may finish when it ends without its runners.
FINISH_GRACE = 5.0
# So long a completed request of the queue is kept (seconds).
RESULTS_KEPT = 7 * 24 * 3600

_LOG = logging.getLogger(__name__)


def main() -> None:
    """Run the gateway of the state folder until it is asked to stop; exit 1 if there is one."""
    os.umask(0o077)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    state = settings.state_folder()
    lock = FileLock(state / "gateway.lock", mode=0o600)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        sys.exit(f"a gateway already runs on {state}; stop it with: fal-notebook gateway stop")
    with lock:
        loop = new_loop()
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(_serve(state))
        except FalNotebookError as error:
            sys.exit(str(error))


async def _serve(state: Path) -> None:
    listener = _listen(state)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    token = secrets.token_urlsafe(32)
    info = discovery.GatewayInfo(url, token, os.getpid(), discovery.PROTOCOL, __version__)
    gateway = Gateway(state, info)
    gateway.restore()
    await gateway.take_up_queue()
    housekeeping = asyncio.ensure_future(_keep_house(gateway))
    webhooks = asyncio.ensure_future(gateway.webhooks.run())
    bounding = asyncio.ensure_future(bounds.watch(state, gateway.runner_ids))
    warming = asyncio.ensure_future(gateway.backend.warm(sys.executable))
    server = Server(GatewayApp(gateway), BoundedProtocol)
    serving = asyncio.ensure_future(server.serve([listener]))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, gateway.request_stop, True)
    discovery.write(state, info)
    await gateway.stop_requested.wait()
    discovery.withdraw(state, info)
    if gateway.keep_runners:
        await gateway.finish_requests(FINISH_GRACE)
    else:
        await gateway.stop_runners(STOP_GRACE)
    for task in (warming, housekeeping, webhooks, bounding):
        task.cancel()
    await gateway.close()
    server.stop()
    await serving


async def _keep_house(gateway: Gateway) -> None:
    """Remove what is no longer shown or used, now and every hour."""
    results_kept = settings.setting("results_kept", RESULTS_KEPT)
    logs_max_bytes = settings.setting("logs_max_bytes", bounds.MOST_OF_ALL)
    while True:
        try:
            apps.prune(gateway)
            blobs.prune(gateway)
            errors.prune(gateway)
            await asyncio.to_thread(
                bounds.trim, gateway.state, bounds.ended(gateway.store), logs_max_bytes
            )
            await gateway.queue.records.forget(time.time() - results_kept)
        except (FalNotebookError, OSError):
            _LOG.exception("old runners and payloads were not removed")
        await asyncio.sleep(3600)


def _listen(state: Path) -> socket.socket:
    """Listen on the configured port, else on that of the last gateway, so that URLs stay valid."""
    port, last = settings.setting("port", 0), state / "port"
    if port:
        try:
            return socket.create_server(("127.0.0.1", port), backlog=2048)
        except (OSError, OverflowError) as error:
            raise GatewayError(f"port={port} cannot be used: {error}") from None
    with contextlib.suppress(OSError, ValueError, OverflowError):
        return socket.create_server(("127.0.0.1", int(last.read_text())), backlog=2048)
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    last.write_text(str(listener.getsockname()[1]))
    return listener


if __name__ == "__main__":
    main()
