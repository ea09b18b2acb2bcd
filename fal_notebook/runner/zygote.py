"""A warm process per environment: it has imported the runner's libraries and forks runners.

It stays single-threaded and opens nothing, so that a fork is safe. It reads one RunnerSpec per
line from the gateway's socket, answers each with the child's pid, and ends when the socket closes.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import traceback

from fal_notebook.runner import program  # imports all that a runner needs, once
from fal_notebook.runner.spec import RunnerSpec


def serve(connection: socket.socket) -> None:
    """Fork a runner for each line that comes, until the gateway goes away."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps: exits are seen on the link
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.collect()
    gc.freeze()
    connection.sendall(b"ready\n")
    for line in connection.makefile("rb"):
        pid = os.fork()
        if pid == 0:
            connection.close()
            become(RunnerSpec.from_json(line))
        connection.sendall(b"%d\n" % pid)


def become(spec: RunnerSpec) -> None:
    """Turn this process into a runner in a session of its own; never returns."""
    try:
        if os.getsid(0) != os.getpid():
            os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        gc.unfreeze()
        program.run(spec)
    except BaseException:
        traceback.print_exc()
    finally:
        program.exit_now()
