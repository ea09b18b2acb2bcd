"""A warm process per environment: it has imported the runner's libraries and forks runners.

It stays single-threaded and opens nothing, so that a fork is safe. It reads one RunnerSpec per
line from the gateway's socket, answers each with process ids, and ends when the socket closes.
Where the environment itself starts threads (from a .pth file, say) it refuses to fork.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import traceback
from collections.abc import Iterator

from fal_notebook.runner import keeper, program  # imports all that a runner needs, once
from fal_notebook.runner.spec import RunnerSpec


def serve(connection: int) -> None:
    """Fork a runner for each line that comes on a socket, until the gateway goes away."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps keepers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.set_inheritable(connection, False)
    gc.collect()
    gc.freeze()
    with contextlib.suppress(ConnectionError):  # the gateway was killed
        if len(os.listdir("/proc/self/task")) > 1:
            os.write(connection, b"unsafe\n")
            return
        os.write(connection, b"ready\n")
        for line in _lines(connection):
            spec = RunnerSpec.from_json(line)
            if os.fork() == 0:
                _keep(connection, spec)


def _keep(connection: int, spec: RunnerSpec) -> None:
    """Go the child's own way; it never comes back into the loop of the zygote."""
    try:
        keeper.keep(connection, spec.ending, lambda: become(spec))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def _lines(descriptor: int) -> Iterator[bytes]:
    """Yield lines; a file object would keep the descriptor open in every runner."""
    buffer = b""
    while data := os.read(descriptor, 65536):
        *lines, buffer = (buffer + data).split(b"\n")
        yield from lines


def become(spec: RunnerSpec, kept: bool = True) -> None:
    """Turn this process into a runner in a session of its own; never returns.

    Without a keeper it ends its process group itself, when it comes to its end in peace.
    """
    status = 0
    try:
        if os.getsid(0) != os.getpid():
            os.setsid()
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        gc.unfreeze()
        program.run(spec)
    except BaseException:
        traceback.print_exc()
        status = 1
    finally:
        program.flush()
        if not kept:
            os.killpg(0, signal.SIGKILL)
        os._exit(status)
