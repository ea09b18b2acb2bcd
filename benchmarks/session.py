"""A notebook of its own with a gateway of its own, on a private state folder that goes away."""

from __future__ import annotations

import contextlib
import io
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import psutil
from loads import Target
from peers import BODY


class Session:
    """A real IPython shell and the warm gateway that it deploys to."""

    def __init__(self, state: str) -> None:
        from IPython.core.interactiveshell import InteractiveShell
        from traitlets.config import Config

        from fal_notebook import discovery, settings

        config = Config()
        config.HistoryManager.enabled = False
        self._shell = InteractiveShell.instance(config=config)
        self._shell.run_line_magic("load_ext", "fal_notebook")
        self._numbers = iter(range(10**6))
        self.state = state
        self.gateway = psutil.Process(discovery.ensure(settings.state_folder()).pid)
        self.deploy("warm")  # the zygote is there when this has answered
        self["warm"].delete()

    def run(self, source: str) -> None:
        """Run a cell without showing what it displays."""
        with contextlib.redirect_stdout(io.StringIO()):
            self._shell.run_cell(source).raise_error()

    def __getitem__(self, name: str) -> Any:
        return self._shell.user_ns[name]

    def new_name(self) -> str:
        """Return a function's name that was not used before."""
        return f"echo{next(self._numbers)}"

    def deploy(self, name: str, options: str = "", keyword: str = "def") -> Any:
        """Run a cell that deploys the echo function under `name`; return its handle."""
        self.run(cell(name, options, keyword))
        return self[name]

    def target(self, name: str) -> Target:
        """Return how the app is asked through the gateway."""
        url = urlsplit(self[name].url)
        assert url.hostname is not None
        assert url.port is not None
        return Target((url.hostname, url.port), url.path, BODY)

    def ready(self, name: str) -> int:
        """Return how many runners of the app are ready."""
        query = "SELECT count(*) FROM runners WHERE app = ? AND state = 'IDLE'"
        return int(self._stored(query, name)[0])

    def runner(self, name: str) -> tuple[Target, psutil.Process]:
        """Return how the app's one runner is asked directly, and its process."""
        address, secret, pid = self._stored(
            "SELECT address, secret, json_extract(process, '$.pid') FROM runners "
            "WHERE app = ? AND state = 'IDLE'",
            name,
        )
        headers = (("x-fal-runner-secret", secret),)
        path = address.removeprefix("unix:")
        return Target(path, "/", BODY, headers), psutil.Process(pid)

    def _stored(self, query: str, name: str) -> Any:
        # The store and not the control API: polling that would take the gateway's own time.
        with contextlib.closing(sqlite3.connect(f"{self.state}/store.db")) as store:
            return store.execute(query, (self[name].name,)).fetchone()


def cell(name: str, options: str = "", keyword: str = "def") -> str:
    """Return the source of the cell that most rows deploy: an echo with pydantic in and out."""
    return (
        f"%%fal_function {name} serve=true auth=public wait=true {options}\n"
        "from pydantic import BaseModel\n"
        "class Answer(BaseModel):\n    text: str\n"
        f"{keyword} {name}(text: str, times: int = 1) -> Answer:\n"
        "    return Answer(text=text * times)\n"
    )


@contextlib.contextmanager
def session() -> Iterator[Session]:
    """Give a session; afterwards nothing of it is left, however it ends."""
    with tempfile.TemporaryDirectory(prefix="fal-bench-") as state:
        os.environ["FAL_NOTEBOOK_STATE"] = state
        os.environ["FAL_NOTEBOOK_CONFIG"] = f"{state}/config.toml"
        os.environ["FAL_NOTEBOOK_OWNER"] = "bench"
        try:
            yield Session(state)
        finally:
            _end(state)


def until(condition: Callable[[], bool], deadline_s: float = 30.0) -> None:
    """Poll every ms until a condition holds."""
    deadline = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("it did not come true in time")
        time.sleep(0.001)


def _end(state: str) -> None:
    command = [sys.executable, "-m", "fal_notebook.cli", "gateway", "stop"]
    with contextlib.suppress(subprocess.TimeoutExpired):
        quiet = subprocess.DEVNULL
        subprocess.run(
            command, stdout=quiet, timeout=30, check=False, cwd=state, start_new_session=True
        )
    left = [process for process in psutil.process_iter() if _belongs(process, state)]
    for process in psutil.wait_procs(left, timeout=5)[1]:
        process.kill()


def _belongs(process: psutil.Process, state: str) -> bool:
    if process.pid == os.getpid():
        return False
    try:
        return any(state in text for text in (*process.cmdline(), *process.environ().values()))
    except psutil.Error:
        return False
