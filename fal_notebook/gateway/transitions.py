"""Which state of a runner may follow which, and how a change of state is recorded.

What a state means to who waits for a runner is said in `states`.
"""

from __future__ import annotations

from dataclasses import replace

from fal_notebook.gateway.store import RunnerRow, Store

_END = frozenset({"DRAINING", "TERMINATING"})
# A runner begins with PENDING, and enters it again to wait for GPUs. IDLE and RUNNING change with
# every request, so that is kept in memory only; a runner that a new gateway takes over goes from
# IDLE to SETUP until it has answered.
FOLLOWS: dict[str, frozenset[str]] = {
    "": frozenset({"PENDING"}),
    "PENDING": frozenset({"PENDING", "DOCKER_PULL", "SETUP"}) | _END,
    "DOCKER_PULL": frozenset({"SETUP"}) | _END,
    "SETUP": frozenset({"IDLE"}) | _END,
    "IDLE": frozenset({"RUNNING", "SETUP"}) | _END,
    "RUNNING": frozenset({"IDLE"}) | _END,
    "DRAINING": frozenset({"TERMINATING"}),
    "TERMINATING": frozenset({"CRASH_BACKOFF", "TERMINATED"}),
    "CRASH_BACKOFF": frozenset({"TERMINATED"}),
    "TERMINATED": frozenset(),
}
LIVE = frozenset({"PENDING", "DOCKER_PULL", "SETUP", "IDLE"})
ENDING = frozenset({"DRAINING", "TERMINATING", "CRASH_BACKOFF", "TERMINATED"})
# What has no process any more.
OVER = frozenset({"CRASH_BACKOFF", "TERMINATED"})


def check(before: str, after: str) -> None:
    """Refuse a change of state that cannot be, and one that is never recorded.

    Raises
    ------
    ValueError
    """
    if after == "RUNNING" or after not in FOLLOWS.get(before, ()):
        raise ValueError(f"a runner cannot go from {before or 'nothing'} to {after}")


def record(store: Store, row: RunnerRow, state: str, cause: str) -> None:
    """Change the state of a runner: one transaction, one event.

    Why a runner lives is told of that state only; why it ends stays with it.

    Raises
    ------
    ValueError
        When that state cannot follow; nothing is changed.
    StoreError
        When it could not be written; the runner has its new state all the same.
    """
    check(row.state, state)
    told = cause or row.cause
    row.state = state
    row.cause = told if state in ENDING else row.cause
    data = {"runner": row.id, "revision": row.revision, "state": state, "cause": told}
    with store.transaction():
        store.put(replace(row, cause=told))
        store.emit("runner", row.owner, row.app, data)


def bury(store: Store, row: RunnerRow, cause: str) -> None:
    """Record the end of a runner of which nothing is left; raises as `record`."""
    if row.state not in OVER | {"TERMINATING"}:
        record(store, row, "TERMINATING", cause)
    if row.state != "TERMINATED":
        record(store, row, "TERMINATED", cause)
