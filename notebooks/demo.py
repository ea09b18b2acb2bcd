"""Runs the quickstart notebook against a gateway of its own and shows the results (``make demo``).

The gateway's state lies in a private folder that is removed at the end, however it ends; the exit
status is non-zero when a cell failed, when something was left running, or after Ctrl-C.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any

import nbformat
import psutil
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

NOTEBOOK = Path(__file__).with_name("01-quickstart.ipynb")
CELL_TIMEOUT_S = 180
STOP_TIMEOUT_S = 30
# What the notebook's own variables say at its end, in one line of JSON.
REPORT = (
    "import json; print(json.dumps({'url': classify.url, 'answer': answer, "
    "'accuracy': accuracy, 'requests': requests, 'timeline': timeline}))"
)


def run_notebook(path: Path) -> dict[str, Any]:
    """Execute every cell as it stands, telling each on stdout, and return what REPORT printed."""
    notebook = nbformat.read(path, as_version=4)
    count = sum(cell.cell_type == "code" for cell in notebook.cells)
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT_S,
        shutdown_kernel="immediate",
        resources={"metadata": {"path": str(path.parent)}},
    )
    number, heading = 0, ""
    # Errors of cells come as messages; the kernel's stderr has only what it says about itself.
    with client.setup_kernel(stderr=subprocess.DEVNULL):
        for index, cell in enumerate(notebook.cells):
            if cell.cell_type == "markdown":
                heading = cell.source.splitlines()[0].lstrip("# ")
                continue
            number += 1
            print(f"[{number}/{count}] {heading} … ", end="", flush=True)
            started = time.monotonic()
            client.execute_cell(cell, index)
            print(f"{time.monotonic() - started:.1f} s", flush=True)
        notebook.cells.append(nbformat.v4.new_code_cell(REPORT))
        report = client.execute_cell(notebook.cells[-1], len(notebook.cells) - 1)
    facts: dict[str, Any] = json.loads(report.outputs[0].text)
    return facts


def show(facts: dict[str, Any]) -> None:
    timeline = facts["timeline"]
    print(f"\nURL        {facts['url']}")
    print(f"Answer     {facts['answer']}")
    print(f"Accuracy   {facts['accuracy']:.3f} over {facts['requests']} requests")
    print("Runners over time")
    for runners, samples in groupby(timeline, key=lambda sample: int(sample["runners"])):
        since = next(samples)["at"] - timeline[0]["at"]
        print(f"  {since:5.1f} s  {runners} {'#' * runners}".rstrip())


def processes_of(state: str) -> list[psutil.Process]:
    """All processes but this one whose environment, command line or folder names ``state``."""
    found = []
    for process in psutil.process_iter():
        try:
            traces = [*process.environ().values(), *process.cmdline(), process.cwd()]
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
        if process.pid != os.getpid() and any(state in trace for trace in traces):
            found.append(process)
    return found


def stop_gateway(state: str) -> bool:
    """Stop the gateway and its runners; False, after killing them, when some did not end."""
    command = [sys.executable, "-m", "fal_notebook.cli", "gateway", "stop"]
    with suppress(subprocess.TimeoutExpired):
        subprocess.run(command, stdout=subprocess.DEVNULL, timeout=STOP_TIMEOUT_S, check=False)
    _, left = psutil.wait_procs(processes_of(state), timeout=STOP_TIMEOUT_S)
    for process in left:
        print(f"Still running, killed: {process.pid} {process.name()}", file=sys.stderr)
        process.kill()
    psutil.wait_procs(left, timeout=5)
    return not left


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    status = 1
    with tempfile.TemporaryDirectory(prefix="fal-demo-") as state:
        for name in [name for name in os.environ if name.startswith("FAL_NOTEBOOK_")]:
            del os.environ[name]  # it shows what the notebook says, whatever the user has set
        os.environ["FAL_NOTEBOOK_STATE"] = state
        os.environ["FAL_NOTEBOOK_CONFIG"] = str(Path(state, "config.toml"))
        try:
            facts = run_notebook(NOTEBOOK)
            show(facts)
            status = 0
        except (CellExecutionError, DeadKernelError, TimeoutError) as error:
            plain = re.sub(r"\x1b\[[\d;]*m", "", str(error))
            print(f"failed\n\n{plain}", file=sys.stderr)
        except KeyboardInterrupt:
            # It would tell of tasks that nbclient leaves behind.
            logging.getLogger("asyncio").disabled = True
            print("\nInterrupted.", file=sys.stderr)
        finally:
            # A second Ctrl-C must not leave anything behind.
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            if not stop_gateway(state):
                status = 1
    if status == 0:
        print("\nDone; nothing is left running.")
    return status


if __name__ == "__main__":
    sys.exit(main())
