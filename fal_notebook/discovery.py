"""Find the user's gateway through its 0600 file, or start it; the file is the only way to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from fal_notebook.exceptions import GatewayUnavailableError

PROTOCOL = 1
START_TIMEOUT = 20.0


@dataclass(frozen=True)
class GatewayInfo:
    """What a client needs to reach the gateway: URL, owner's token, process id, versions."""

    url: str
    token: str
    pid: int
    protocol: int
    version: str


def info_file(state: Path) -> Path:
    """Return the path of the file that the running gateway keeps in its state folder."""
    return state / "gateway.json"


def write(state: Path, info: GatewayInfo) -> None:
    """Publish the gateway, readable by its user only, in one atomic step."""
    temporary = info_file(state).with_suffix(".tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w") as file:
        json.dump(asdict(info), file)
    temporary.replace(info_file(state))


def find(state: Path) -> GatewayInfo | None:
    """Return the gateway of this state folder if it answers, else None."""
    try:
        info = GatewayInfo(**json.loads(info_file(state).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return info if answers(info) else None


def answers(info: GatewayInfo) -> bool:
    """Say whether the gateway at this address accepts the owner's token."""
    request = urllib.request.Request(
        f"{info.url}/api/gateway", headers={"Authorization": f"Bearer {info.token}"}
    )
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(request, timeout=5) as reply:
            return bool(reply.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def ensure(state: Path) -> GatewayInfo:
    """Return the running gateway of `state`, started now if there is none.

    Raises
    ------
    GatewayUnavailableError
        When it does not come up within 20 s; the message holds the end of its log.
    """
    found = find(state)
    if found is None:
        with FileLock(state / "start.lock"):
            found = find(state) or _start(state)
    if found.protocol < PROTOCOL:
        found = _replace(state, found)
    return found


def _start(state: Path) -> GatewayInfo:
    log = state / "gateway.log"
    environment = os.environ | {"FAL_NOTEBOOK_STATE": str(state)}
    with open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "fal_notebook.gateway"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            cwd=state,
            start_new_session=True,
        )
    process.returncode = 0  # it outlives us: no ResourceWarning about a child nobody waits for
    return _await(state, process.pid, log)


def _await(state: Path, pid: int, log: Path) -> GatewayInfo:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        found = find(state)
        if found is not None:
            return found
        if os.waitpid(pid, os.WNOHANG)[0] == pid:
            break
        time.sleep(0.02)
    tail = " / ".join(log.read_text(errors="replace").splitlines()[-3:])
    raise GatewayUnavailableError(f"the gateway did not start, see {log}: {tail}")


def _replace(state: Path, old: GatewayInfo) -> GatewayInfo:
    """Let a newer gateway take over from an older one; its runners stay and are adopted."""
    request = urllib.request.Request(
        f"{old.url}/api/gateway/stop?keep_runners=true",
        method="POST",
        headers={"Authorization": f"Bearer {old.token}"},
    )
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    direct.open(request, timeout=10).close()
    with FileLock(state / "start.lock"):
        return find(state) or _start(state)


def wait_until_gone(state: Path, timeout: float = 30.0) -> None:
    """Wait until the gateway has released its lock; a next one can start then.

    Raises
    ------
    GatewayUnavailableError
        When it is still there after `timeout` seconds.
    """
    try:
        with FileLock(state / "gateway.lock", timeout=timeout):
            pass
    except Timeout:
        raise GatewayUnavailableError(f"the gateway did not stop in {timeout:g} s") from None
