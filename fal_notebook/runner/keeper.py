"""The parent of a runner on Linux: whatever the runner started ends with the runner.

Processes whose parent has died become children of the keeper (a "child subreaper"), also those
that left the runner's session or cleared their environment. When the runner has ended, the
keeper records how, kills what is left, and ends too. What a killed keeper leaves comes to the
zygote, its own parent, in the same way.

As a program of its own, ``python keeper.py PARENT COMMAND…``, it keeps any command so. It imports
nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path

# From <sys/prctl.h>.
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
# A gateway that is away is looked for so often (seconds).
_PAUSE = 0.5


def keep(
    connection: int, ending: str, state: str, patience: float, become: Callable[[], None]
) -> None:
    """Turn this process into the keeper of a new one that calls `become`; never returns.

    Parameters
    ----------
    connection : int
        Descriptor that gets ``RUNNER KEEPER`` (process ids) as a line; it is closed then.
    ending : str
        File that gets the runner's exit status, as of `subprocess`.
    state : str
        Folder that the gateway has locked; see `has_gateway`.
    patience : float
        Seconds without a gateway after which a runner that has not ended by itself is killed.
    """
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    adopt_orphans()
    me = os.getpid()
    runner = os.fork()
    if runner == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        _end_with(me)
        os.close(connection)
        become()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with contextlib.suppress(OSError):  # the gateway has gone: the runner will notice, too
        os.write(connection, b"%d %d\n" % (runner, os.getpid()))
    os.close(connection)
    _close_standard_streams()
    _record(ending, _guard(runner, state, patience))
    _end_children()
    os._exit(0)


def keep_command(parent: int, command: list[str]) -> None:
    """Run a command and exit as it does; never returns.

    All that it started ends with it, with `parent`, or when this process is told to (SIGTERM).
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, lambda *_: _end(1))
    adopt_orphans()
    _end_with(parent, signal.SIGTERM)
    me = os.getpid()
    child = os.fork()
    if child == 0:
        _end_with(me)
        _execute(command)
    status = _wait_for(child)
    _end(status if status >= 0 else 128 - status)


def _execute(command: list[str]) -> None:
    try:
        os.execv(command[0], command)
    except OSError as error:
        os.write(2, f"error: {command[0]} cannot be executed: {error.strerror}\n".encode())
    finally:
        os._exit(127)


def _end(status: int) -> None:
    _end_children()
    os._exit(status)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _end_with(parent: int, number: int = signal.SIGKILL) -> None:
    """Have this process sent a signal as soon as its parent has ended."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent:  # it was too late to be told
        os._exit(1)


def _close_standard_streams() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)


def _wait_for(runner: int) -> int:
    """Return the runner's exit status; children that it leaves behind are reaped meanwhile."""
    while True:
        pid, status = os.wait()
        if pid == runner:
            return os.waitstatus_to_exitcode(status)


def _guard(runner: int, state: str, patience: float) -> int:
    """Return the runner's exit status as `_wait_for`; kill it once its gateway is long gone.

    By then it would have ended by itself, if its code had let it: C code may keep all its threads
    from running. One that is away just now is looked for often: it may be killed again and again.
    """
    seen, pause = time.monotonic(), patience / 4
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == runner:
            return os.waitstatus_to_exitcode(status)
        if pid or signal.sigtimedwait({signal.SIGCHLD}, pause):
            continue
        if has_gateway(state):
            seen, pause = time.monotonic(), patience / 4
            continue
        pause = min(_PAUSE, pause)
        if time.monotonic() - seen > patience:
            os.kill(runner, signal.SIGKILL)


def has_gateway(state: str) -> bool:
    """Say whether a process holds the lock of a state folder, or of a file in it (`state_lock`)."""
    nodes = set()
    for path in (state, f"{state}/gateway.lock"):
        with contextlib.suppress(FileNotFoundError):
            nodes.add(b":%d" % os.stat(path).st_ino)
    # "1: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE …"; the device is not what `stat` says on all.
    locks = (line.split() for line in Path("/proc/locks").read_bytes().splitlines())
    return any(b"FLOCK" in lock and lock[5].endswith(tuple(nodes)) for lock in locks)


def _record(ending: str, status: int) -> None:
    with contextlib.suppress(OSError):
        Path(ending).write_text(str(status))


def _end_children() -> None:
    """Kill until no child is left: the children of a killed one become ours."""
    while True:
        kill_children()
        try:
            os.wait()
        except ChildProcessError:
            return


def kill_children(spared: Collection[int] = ()) -> list[int]:
    """Kill every child of this process but those that are spared; return which."""
    me, killed = b"%d" % os.getpid(), []
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError, IndexError):
            if name.isdigit() and int(name) not in spared:
                # "pid (command) state parent …"; the command may hold spaces and brackets.
                fields = Path(f"/proc/{name}/stat").read_bytes().rpartition(b")")[2].split()
                if fields[1] == me:
                    os.kill(int(name), signal.SIGKILL)
                    killed.append(int(name))
    return killed


if __name__ == "__main__":
    keep_command(int(sys.argv[1]), sys.argv[2:])
