"""The parent of an environment's runners: it forks each, and ends what a killed keeper leaves.

It stays single-threaded and opens nothing, so that a fork is safe. It reads one RunnerSpec per
line from the gateway's socket and answers each with process ids. When the socket closes it
stays until its last runner has ended. Where the environment itself starts threads (from a .pth
file, say) it refuses to fork.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import traceback
from collections.abc import Callable, Iterator

from fal_notebook.runner import keeper
from fal_notebook.runner.spec import RunnerSpec

Become = Callable[[RunnerSpec], None]


def serve(connection: int, become: Become) -> None:
    """Fork a runner for each line that comes on a socket, until the gateway goes away.

    Parameters
    ----------
    connection : int
        Descriptor of the socket.
    become : callable
        Turns the forked process into the runner that it is given; never returns.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.set_inheritable(connection, False)
    gc.collect()
    gc.freeze()
    with contextlib.suppress(ConnectionError):  # the gateway was killed
        if len(os.listdir("/proc/self/task")) > 1:
            os.write(connection, b"unsafe\n")
            return
        keeper.adopt_orphans()
        os.write(connection, b"ready\n")
        _Nursery(connection, become).serve()


class _Nursery:
    """The keepers that were forked, and whatever comes here because one of them was killed."""

    def __init__(self, connection: int, become: Become) -> None:
        self._connection = connection
        self._become = become
        self._keepers: set[int] = set()

    def serve(self) -> None:
        """Fork for each line; then guard those that are left."""
        signal.signal(signal.SIGCHLD, lambda *_: self._reap())
        for line in _lines(self._connection):
            self._fork(RunnerSpec.from_json(line))
        os.close(self._connection)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        while self._reap():
            signal.sigwait({signal.SIGCHLD})

    def _fork(self, spec: RunnerSpec) -> None:
        # Until it is known, a new keeper must not be taken for something that came here.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        pid = os.fork()
        if pid == 0:
            self._keep(spec)
        self._keepers.add(pid)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})

    def _keep(self, spec: RunnerSpec) -> None:
        """Go the child's own way; it never comes back into the loop of the zygote."""
        try:
            patience = 3 * spec.orphan_timeout  # it ends by itself within two
            given = self._connection, spec.ending, spec.state, patience
            keeper.keep(*given, lambda: self._become(spec))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)

    def _reap(self) -> bool:
        """Bury who has ended, kill what a killed keeper left; say whether any child lives.

        The children of what is killed come here before its end is told: they are seen then.
        """
        strays = False
        try:
            while (ended := os.waitpid(-1, os.WNOHANG)) != (0, 0):
                strays = strays or ended[1] != 0 or ended[0] not in self._keepers
                self._keepers.discard(ended[0])
        except ChildProcessError:
            return False
        if strays:
            keeper.kill_children(spared=self._keepers)
        return True


def _lines(descriptor: int) -> Iterator[bytes]:
    """Yield lines; a file object would keep the descriptor open in every runner."""
    buffer = b""
    while data := os.read(descriptor, 65536):
        *lines, buffer = (buffer + data).split(b"\n")
        yield from lines
