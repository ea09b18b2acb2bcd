"""Gateways as processes on a state folder of the test's own: deploys to them, and their end."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
from serving import control

from fal_notebook import discovery
from fal_notebook.discovery import GatewayInfo
from fal_notebook.options import explicit, parse_options
from fal_notebook.payload import capture

WHO = """
import os, time
def who(x: float = 0) -> str:
    time.sleep(x)
    return os.environ["FAL_RUNNER_ID"]
"""


def deploy(gateway: GatewayInfo, source: str = WHO, **values: Any) -> None:
    """Deploy to this very gateway and wait until the app serves."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(source, namespace)
    options = {"serve": True, "auth": "public", "keep_alive": 60, **values}
    payload = capture(namespace["who"])
    digest = hashlib.sha256(payload.content).hexdigest()
    request = {
        "name": "who",
        "digest": payload.digest,
        "payload": digest,
        "manifest": payload.manifest,
        "options": explicit(parse_options(options)),
        "notebook": "a test",
    }
    with control(gateway) as client:
        assert client.put(f"/api/blobs/{digest}", content=payload.content).is_success
        reply = client.post("/api/apps/tester", json=request).json()
        query = {"owner": "tester", "app": "who", "since": reply["since"]}
        with client.stream("GET", "/api/events", params=query) as events:
            for line in events.iter_lines():
                if line.startswith("data: ") and '"step"' in line:
                    step = json.loads(line[6:])["data"]
                    assert step["step"] != "failed", step
                    if step["step"] == "active":
                        return


def stop(gateway: GatewayInfo, state: Path, **query: Any) -> None:
    """Stop a gateway and wait until it has gone."""
    with control(gateway) as client:
        client.post("/api/gateway/stop", params=query)
    discovery.wait_until_gone(state)


def end(gateway: GatewayInfo, state: Path, number: int) -> None:
    """Send a gateway a signal and wait until it has gone."""
    os.kill(gateway.pid, number)
    discovery.wait_until_gone(state)


def processes_of(state: Path) -> list[psutil.Process]:
    """Return every process that has to do with a state folder, but for this one."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            text = " ".join([*process.cmdline(), process.cwd(), *process.environ().values()])
            if str(state) in text and process.pid != os.getpid():
                found.append(process)
    return found


def other_gateway(state: Path) -> subprocess.CompletedProcess[str]:
    """Start one more gateway on a state folder and wait for its end."""
    return subprocess.run(
        [sys.executable, "-m", "fal_notebook.gateway"],
        env={**os.environ, "FAL_NOTEBOOK_STATE": str(state)},
        capture_output=True,
        text=True,
        timeout=30,
    )
