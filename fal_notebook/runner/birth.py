"""How a process becomes a runner; importing this imports all that a runner needs."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import traceback

from fal_notebook.runner import program
from fal_notebook.runner.spec import RunnerSpec

# Of 1000: as if it took half of the memory more than it does.
FIRST_TO_GO = 500


def become(spec: RunnerSpec, kept: bool = True) -> None:
    """Turn this process into a runner in a session of its own; never returns.

    Without a keeper it ends its process group itself, when it comes to its end in peace.
    """
    status = 0
    try:
        if os.getsid(0) != os.getpid():
            with contextlib.suppress(
                PermissionError
            ):  # it leads a group: a container's init did that
                os.setsid()
        for number in (signal.SIGCHLD, signal.SIGHUP, signal.SIGTERM):  # nohup ignores one
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        gc.unfreeze()
        _be_first_to_go()
        program.run(spec)
    except BaseException:
        traceback.print_exc()
        status = 1
    finally:
        program.flush()
        if not kept:
            os.killpg(0, signal.SIGKILL)
        os._exit(status)


def _be_first_to_go() -> None:
    """Have Linux, when it is out of memory, end runners before gateways and notebooks."""
    with contextlib.suppress(OSError, ValueError), open("/proc/self/oom_score_adj", "r+") as file:
        now = int(file.read())
        if now < FIRST_TO_GO:
            file.seek(0)
            file.write(str(FIRST_TO_GO))
