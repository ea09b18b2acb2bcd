"""How a forked process starts a runner anew where a runner may not be forked (Linux).

The zygote that does this has imported nothing of the environment, so it has no threads.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback

from fal_notebook.runner.spec import RunnerSpec


def execute(spec: RunnerSpec) -> None:
    """Replace this process by ``python runner.zip kept``; never returns."""
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # else an ignored signal stays so
        _redirect(spec)
        options = sys.argv[sys.argv.index("--libraries") :] if "--libraries" in sys.argv else []
        # It is born with its name, by which its children could be found without a keeper.
        variables = {**os.environ, "FAL_RUNNER_ID": spec.runner_id}
        os.execve(sys.executable, [sys.executable, sys.argv[0], "kept", *options], variables)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def _redirect(spec: RunnerSpec) -> None:
    """Have the spec on standard input, and what goes wrong in the runner's log."""
    given = os.memfd_create("spec")
    os.write(given, spec.to_json().encode() + b"\n")
    os.lseek(given, 0, os.SEEK_SET)
    os.dup2(given, 0)
    log = os.open(spec.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
