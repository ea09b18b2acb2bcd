"""Requests that failed, grouped by type and place: collected here, written once a second."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from fal_notebook.exceptions import StoreError
from fal_notebook.gateway.fleet import Fleet
from fal_notebook.gateway.logs.redaction import Redaction
from fal_notebook.gateway.store import ErrorGroup, RunnerRow, Store
from fal_notebook.runner import frames, shown

# However often requests fail, the store is written this many seconds apart.
PERIOD = 1.0
# So many groups of an app are kept, and each so long after its last failure (seconds).
GROUPS = 1000
KEPT = 30 * 24 * 3600.0

# Failures of ours that no runner is to blame for.
_OF_THE_GATEWAY = ("runner_scheduling_failure", "startup_timeout", "internal_error")
# Failures that the app cannot have told: those of its code are reported by its runners.
PLATFORM = (
    *_OF_THE_GATEWAY,
    *("request_timeout", "runner_disconnected", "runner_incomplete_response"),
    *("runner_connection_refused", "runner_connection_error", "runner_connection_timeout"),
)

_LOG = logging.getLogger(__name__)


class Errors:
    """Adds failures to their groups.

    Parameters
    ----------
    tell : callable
        Called for an app with failures, at most once a second: ``tell(owner, app, data)``.
    """

    def __init__(
        self,
        store: Store,
        tell: Callable[[str, str, dict[str, Any]], None],
        redaction: Redaction,
    ) -> None:
        self._store = store
        self._redaction = redaction
        self._tell = tell
        self._pending: dict[tuple[str, str, str, str], ErrorGroup] = {}
        self._timer: asyncio.TimerHandle | None = None

    def record(self, failure: ErrorGroup) -> None:
        """Count a failure, or several that a runner has grouped."""
        key = (failure.owner, failure.app, failure.type, failure.place)
        earlier = self._pending.pop(key, None)
        if earlier is not None:
            failure.count += earlier.count
            failure.first_seen = earlier.first_seen
        elif len(self._pending) >= GROUPS:  # the disk is full, or each failure is another one
            del self._pending[next(iter(self._pending))]
        self._pending[key] = failure
        if self._timer is None:
            self.write()

    def forget(self, owner: str, app: str) -> None:
        """Leave out what was not written yet of an app: it was deleted."""
        kept = {key: group for key, group in self._pending.items() if key[:2] != (owner, app)}
        self._pending = kept

    def close(self) -> None:
        """Write what was not written yet."""
        self.write()
        if self._timer is not None:
            self._timer.cancel()

    def write(self) -> None:
        """Write what was not written yet, now: somebody asks."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._pending:
            return
        self._timer = asyncio.get_running_loop().call_later(PERIOD, self.write)
        groups = list(self._pending.values())
        self._redact(groups)
        try:
            self._add(groups)
        except StoreError as error:
            _LOG.warning("errors of apps are written later: %s", error)
            return
        self._pending.clear()
        for (owner, app), newest in {(g.owner, g.app): g for g in groups}.items():
            count = sum(g.count for g in groups if (g.owner, g.app) == (owner, app))
            data = {name: vars(newest)[name] for name in ("type", "place", "request", "message")}
            self._tell(owner, app, {"at": newest.last_seen, "count": count, **data})

    def _redact(self, groups: list[ErrorGroup]) -> None:
        redact = self._redaction.current()
        for group in groups:
            for name in ("type", "place", "message", "traceback", "input"):
                setattr(group, name, redact(getattr(group, name)))

    def _add(self, groups: list[ErrorGroup]) -> None:
        with self._store.transaction():
            for owner, app in {(group.owner, group.app) for group in groups}:
                if self._store.app(owner, app) is None:  # deleted meanwhile
                    continue
                for group in groups:
                    if (group.owner, group.app) == (owner, app):
                        self._store.add_errors(group)
                self._store.limit_errors(owner, app, GROUPS)


def reported(report: dict[str, Any], runner: RunnerRow, revision: int) -> ErrorGroup:
    """Return what a runner reports of its app's code, as `runner.failures` makes it."""
    return ErrorGroup(
        owner=runner.owner,
        app=runner.app,
        count=int(report["count"]),
        first_seen=float(report["first"]),
        last_seen=float(report["last"]),
        revision=revision,
        **{name: str(report[name]) for name in ("type", "place", "request", "message")},
        **{name: str(report[name]) for name in ("traceback", "input")},
    )


def of_platform(
    fleet: Fleet,
    kind: str,
    detail: str,
    request_id: str,
    body: bytes,
    content_type: bytes,
    began: bool = True,
) -> None:
    """Record that a request failed outside of its app's code, perhaps before a runner had it."""
    if fleet.revision is None or kind not in PLATFORM:
        return
    gateway = kind in _OF_THE_GATEWAY or not began
    where = "gateway" if gateway else f"runner {fleet.revision.machine['name']}"
    _record(fleet, kind, where, detail, request_id, _input(body, content_type))


def answered(
    fleet: Fleet, status: int, path: str, request_id: str, body: bytes, content_type: bytes
) -> None:
    """Record that an app's own answer is a failure, of which its runner has told nothing."""
    detail = f"the app answered {status}"
    _record(fleet, f"HTTP {status}", path, detail, request_id, _input(body, content_type))


def _record(fleet: Fleet, kind: str, place: str, message: str, request_id: str, given: str) -> None:
    now = time.time()
    fleet.on_error(
        ErrorGroup(
            owner=fleet.owner,
            app=fleet.name,
            type=kind,
            place=shown.cut(place, 200),
            count=1,
            first_seen=now,
            last_seen=now,
            request=request_id,
            message=shown.cut(message, 500),
            traceback="",
            input=given,
            revision=fleet.revision.number if fleet.revision is not None else 0,
        )
    )


def _input(body: bytes, content_type: bytes) -> str:
    """Return a body to show; a pickle is not loaded here."""
    if content_type == frames.CONTENT_TYPE.encode():
        return "(a call from Python, which only a runner can read)"
    return shown.body(body) if b"\0" not in body else "(no text)"
