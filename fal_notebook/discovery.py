"""Find the user's gateway through its 0600 file, or start it; the file is the only way to it."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from filelock import FileLock

from fal_notebook import private_file, state_lock
from fal_notebook.exceptions import GatewayUnavailableError

PROTOCOL = 1
START_TIMEOUT = 20.0
UNANSWERED = (OSError, ValueError, http.client.HTTPException)
# A disk without room for so many bytes is why a gateway does not start.
PROBE = 64 * 1024

# What a gateway needs of its starter's environment, for itself, uv, Docker, runners and traces. All
# else may hold secrets, which whoever reads /proc would find for as long as it runs.
_NEEDED = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|LANG|LANGUAGE|LC_\w+|TMPDIR|TEMP|TMP|TZ|XDG_\w+"
    r"|SSL_CERT_FILE|SSL_CERT_DIR|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE|NETRC"
    r"|(?i:(HTTPS?|ALL|NO|FTP)_PROXY)|(PIP|UV)_\w+|PYTHON[A-Z]+|(LD|DYLD)_\w+"
    r"|DOCKER_(HOST|CONFIG|CONTEXT|CERT_PATH|TLS_VERIFY|TLS|API_VERSION)"
    r"|CUDA_(VISIBLE_DEVICES|DEVICE_ORDER|HOME|PATH)|NVIDIA_VISIBLE_DEVICES"
    r"|CC|CXX|CFLAGS|CXXFLAGS|CPPFLAGS|LDFLAGS|PKG_CONFIG_PATH|CARGO_HOME|RUSTUP_HOME"
    r"|SSH_AUTH_SOCK|GIT_SSH(_COMMAND)?|GIT_SSL_\w+|FAL_NOTEBOOK_\w+|OTEL_\w+"
)


@dataclass(frozen=True)
class GatewayInfo:
    """What a client needs to reach the gateway: URL, owner's token, process id, versions."""

    url: str
    token: str = field(repr=False)
    pid: int
    protocol: int
    version: str


def info_file(state: Path) -> Path:
    """Return the path of the file that the running gateway keeps in its state folder."""
    return state / "gateway.json"


def write(state: Path, info: GatewayInfo) -> None:
    """Publish the gateway, readable by its user only, in one atomic step."""
    private_file.write(info_file(state), json.dumps(asdict(info)).encode())


def withdraw(state: Path, info: GatewayInfo) -> None:
    """Remove the file unless another gateway has put its own there."""
    with suppress(OSError, ValueError):
        if json.loads(info_file(state).read_text()) == asdict(info):
            info_file(state).unlink()


def find(state: Path) -> GatewayInfo | None:
    """Return the gateway of this state folder if it answers, else None."""
    info = published(state)
    # Who listens on the port of a gateway that has gone must not get its token.
    return info if info is not None and is_alive(info) and answers(info) else None


def is_up(state: Path) -> bool:
    """Say whether the gateway's process is there, without asking it anything."""
    info = published(state)
    return info is not None and is_alive(info)


def is_alive(info: GatewayInfo) -> bool:
    """Say whether the process of this gateway is there, without asking it anything."""
    try:
        os.kill(info.pid, 0)
    except OSError:
        return False
    return not _is_zombie(info.pid)


def _is_zombie(pid: int) -> bool:
    """Say whether a process has ended and waits for its parent only, where there is /proc."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            return stat.read().rpartition(b")")[2].split()[0] == b"Z"
    except OSError:
        return False


def published(state: Path) -> GatewayInfo | None:
    """Return what the file says, of a gateway that may have gone."""
    try:
        content = json.loads(info_file(state).read_text())
        # A newer gateway may say more than we know.
        return GatewayInfo(**{field.name: content[field.name] for field in fields(GatewayInfo)})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def left_runners(state: Path) -> bool:
    """Say whether a gateway that has gone left runners: their folders go when they end in order."""
    folder = state / "runners"
    return folder.is_dir() and any(folder.iterdir())


def answers(info: GatewayInfo) -> bool:
    """Say whether the gateway at this address accepts the owner's token."""
    try:
        ask(info, "/api/gateway")
    except UNANSWERED:
        return False
    return True


def ask(info: GatewayInfo, path: str) -> Any:
    """Return the JSON that the gateway has at `path`; raise one of `UNANSWERED` if it has none."""
    request = urllib.request.Request(
        f"{info.url}{path}", headers={"Authorization": f"Bearer {info.token}"}
    )
    with _direct().open(request, timeout=5) as reply:
        return json.load(reply)


def ensure(state: Path) -> GatewayInfo:
    """Return the running gateway of `state`, started now if there is none.

    Raises
    ------
    GatewayUnavailableError
        When it does not come up within 20 s; the message holds the end of its log.
    """
    found = find(state)
    if found is not None and found.protocol >= PROTOCOL:
        return found
    try:
        with FileLock(state / "start.lock", mode=0o600):
            return _ensure_alone(state)
    except OSError as error:
        raise GatewayUnavailableError(f"the gateway cannot be started: {error}") from None


def _ensure_alone(state: Path) -> GatewayInfo:
    """Find or start a gateway; one that is still starting or ending is waited for."""
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        _refuse_unreadable(state)
        found = find(state)
        if found is not None and found.protocol >= PROTOCOL:
            return found
        if found is not None:
            _make_room(found)
        if state_lock.wait_until_free(state):
            return _start(state, deadline)
        time.sleep(0.02)
    raise GatewayUnavailableError(
        f"a gateway holds {state} and does not answer; see {state / 'gateway.log'}"
    )


def _refuse_unreadable(state: Path) -> None:
    """Say at once that the file is there and cannot be read: nobody could come to that gateway."""
    with suppress(FileNotFoundError):
        try:
            info_file(state).read_bytes()
        except PermissionError as error:
            raise GatewayUnavailableError(
                f"{info_file(state)} cannot be read: {error.strerror}; it must belong to you"
            ) from None


def clean_environment() -> dict[str, str]:
    """Return what a gateway inherits from the process that starts it."""
    return {name: value for name, value in os.environ.items() if _NEEDED.fullmatch(name)}


def _start(state: Path, deadline: float) -> GatewayInfo:
    log = state / "gateway.log"
    environment = clean_environment() | {"FAL_NOTEBOOK_STATE": str(state)}
    with open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as output:
        begin = output.tell()
        process = subprocess.Popen(
            [sys.executable, "-m", "fal_notebook.gateway"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            cwd=state,
            start_new_session=True,
        )
    while process.poll() is None and time.monotonic() < deadline:
        found = find(state)
        if found is not None:
            # Reaped whenever it ends, or it would stay a zombie for as long as this kernel lives.
            threading.Thread(target=process.wait, name="fal-gateway-end", daemon=True).start()
            return found
        time.sleep(0.02)
    process.kill()
    process.wait()
    said = log.read_bytes()[begin:].decode(errors="replace").split("\n")
    reason = next((line for line in reversed(said) if line.strip()), "it said nothing")
    reason = _unwritable(state) or reason
    raise GatewayUnavailableError(f"the gateway did not start: {reason.strip()} (log: {log})")


def _unwritable(state: Path) -> str:
    """Say why nothing can be written to the state folder, "" when it can: the log shows neither."""
    try:
        with tempfile.TemporaryFile(dir=state) as probe:
            probe.write(bytes(PROBE))
    except OSError as error:
        return f"{state} cannot be written: {error.strerror}"
    return ""


def _make_room(old: GatewayInfo) -> None:
    """Ask an older gateway to end for a newer one; its runners stay and are adopted."""
    request = urllib.request.Request(
        f"{old.url}/api/gateway/stop?keep_runners=true",
        method="POST",
        headers={"Authorization": f"Bearer {old.token}"},
    )
    with suppress(OSError):  # it may have gone meanwhile
        _direct().open(request, timeout=10).close()


def _direct() -> urllib.request.OpenerDirector:
    """Return an opener that no proxy variable diverts."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))


def wait_until_gone(state: Path, timeout: float = 30.0) -> None:
    """Wait until the gateway's process has ended, and its lock with it; a next one can start then.

    Raises
    ------
    GatewayUnavailableError
        When it is still there after `timeout` seconds.
    """
    if not state_lock.wait_until_free(state, timeout):
        raise GatewayUnavailableError(f"the gateway did not stop in {timeout:g} s")
