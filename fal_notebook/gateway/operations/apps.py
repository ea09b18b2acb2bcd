"""Ask about apps, change their scaling, delete them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from fal_notebook.exceptions import NotFoundError, OptionError
from fal_notebook.gateway import clock, paths, plan
from fal_notebook.gateway.fleet import Fleet
from fal_notebook.gateway.gateway import Deployment, Gateway
from fal_notebook.gateway.store import App, Revision, RunnerRow
from fal_notebook.machines import MachineType
from fal_notebook.options import parse_options, parse_scaling

# Ended runners are shown, and their logs kept, for this long.
RUNNERS_KEPT = 7 * 24 * 3600.0
# So many callers of an app are told, those that called last.
CALLERS_TOLD = 100


def list_apps(gateway: Gateway) -> list[dict[str, Any]]:
    """Return the status of every app, by owner and name."""
    apps = {(app.owner, app.name) for app in gateway.store.select(App, "1")}
    return [status(gateway, *key) for key in sorted(apps | gateway.deployments.keys())]


def status(gateway: Gateway, owner: str, name: str) -> dict[str, Any]:
    """Return what a person wants to know of an app: URL, revision, options in force, load.

    Of an app whose first deploy is under way, what that deploy will make of it.

    Raises
    ------
    NotFoundError
        When there is no such app.
    """
    deployment = gateway.deployments.get((owner, name))
    app, revision = _found_or_deploying(gateway, owner, name)
    fleet = gateway.fleet(owner, name)
    options = plan.effective(app, revision)
    machine = MachineType(**revision.machine)
    scaling = plan.scaling(options, machine, gateway.host)
    setup = revision.manifest.get("setup")  # its function is in the payload, its name here
    return {
        "owner": owner,
        "name": name,
        "url": f"{gateway.info.url}/run/{owner}/{name}",
        "revision": revision.id,
        "number": revision.number,
        "digest": revision.digest,
        "deployed_at": revision.created_at,
        "notebook": app.notebook,
        "env": revision.env,
        "deploying": deployment.revision.number if deployment else None,
        "step": _last_step(gateway, deployment) if deployment else "",
        "machine": revision.machine,
        "notices": plan.above_host(options, machine, gateway.host),
        "options": {
            **options,
            "max_concurrency": scaling.max_concurrency,
            "setup_function": setup,
        },
        "explicit": revision.explicit | ({"setup_function": setup} if setup else {}),
        "scaled": app.scaling,
        "inherited": plan.of_earlier(revision),
        "inheritable": plan.inherited({}, app, revision),
        "crash_backoff": fleet.is_failing,
        "next_try_at": fleet.next_try_at(),
        "last_error": fleet.last_error if fleet.failures else "",
        "callers": _callers(gateway, fleet),
        **fleet.sample()._asdict(),
    }


def _callers(gateway: Gateway, fleet: Fleet) -> list[dict[str, Any]]:
    shown = ("user", "requests", "first_at", "last_at")
    callers = gateway.tally.callers(fleet)[:CALLERS_TOLD]
    return [{name: getattr(caller, name) for name in shown} for caller in callers]


def _found_or_deploying(gateway: Gateway, owner: str, name: str) -> tuple[App, Revision]:
    """Return an app and its revision; before there is an app, those that are being deployed."""
    deployment = gateway.deployments.get((owner, name))
    app = gateway.store.app(owner, name)
    if deployment is None or (app is not None and app.revision is not None):
        return find(gateway, owner, name)
    revision = deployment.revision
    return App(owner, name, revision.id, deployment.notebook), revision


def _last_step(gateway: Gateway, deployment: Deployment) -> str:
    revision = deployment.revision
    events = gateway.store.events(0, revision.owner, revision.app)
    steps = [e.data for e in events if e.data.get("revision") == revision.id and "step" in e.data]
    return f"{steps[-1]['step']}: {steps[-1]['message']}" if steps else ""


def runners(gateway: Gateway, owner: str, name: str) -> list[dict[str, Any]]:
    """Return an app's runners that have not ended, oldest first, then those that crashed."""
    _found_or_deploying(gateway, owner, name)
    fleet = gateway.fleet(owner, name)
    return [
        {
            "id": runner.row.id,
            "revision": runner.row.revision,
            "state": runner.state,
            "cause": runner.row.cause or gateway.gpus.waits(runner.row.id),
            "next_try_at": fleet.next_try_at() if runner in fleet.crashed else None,
            "in_flight": runner.in_flight,
            "machine_type": runner.row.machine_type,
            "gpus": gateway.gpus.of(runner.row.id),
            "region": runner.row.region,
            "metrics_port": runner.row.process.get("metrics_port"),
            "created_at": runner.row.created_at,
            "ready_at": runner.row.ready_at,
            "last_request_at": runner.last_request_at,
            **({} if runner in fleet.crashed else gateway.targets.stats(runner.row.process)),
        }
        for runner in fleet.shown()
    ]


def scale(gateway: Gateway, owner: str, name: str, values: dict[str, Any]) -> dict[str, Any]:
    """Change scaling options of a running app, at once and without a new revision.

    Raises
    ------
    OptionError
        When an option is wrong, contradicts another, or needs a new revision.
    """
    app, revision = find(gateway, owner, name)
    if not values:
        raise OptionError("name at least one option to change, such as keep_alive=60")
    scaling = {**app.scaling, **parse_scaling(values)}
    parse_options({**revision.explicit, **_comparable(revision, scaling)})
    app.scaling = scaling
    with gateway.store.transaction():
        gateway.store.put(app)
        gateway.store.emit("scale", owner, name, {"scaling": scaling})
    gateway.activate(app, revision)
    if "regions" in values:
        _leave_other_regions(gateway, gateway.fleet(owner, name))
    return status(gateway, owner, name)


def _leave_other_regions(gateway: Gateway, fleet: Fleet) -> None:
    """Let runners outside of the app's regions go once their requests are answered."""
    for runner in list(fleet.runners.values()):
        elsewhere = bool(fleet.regions) and runner.row.region not in fleet.regions
        if elsewhere and runner.live and not runner.proving:
            gateway.lifecycle.retire(runner, "it is in none of the app's regions any more")


def _comparable(revision: Revision, scaling: dict[str, Any]) -> dict[str, Any]:
    """Return all options in force, so that a contradiction with one not named is found too."""
    names = ("min_concurrency", "max_concurrency")
    return {**{name: revision.options[name] for name in names}, **scaling}


def delete(gateway: Gateway, owner: str, name: str) -> None:
    """Delete an app: its runners drain, its revisions, payloads and logs go.

    A deploy of it that is under way is cancelled; one that never came up is deleted too.
    """
    check_deployed(gateway, owner, name)
    if deployment := gateway.deployments.get((owner, name)):
        deployment.cancel("the app was deleted")
    ended = [row.id for row in past_runners(gateway, owner, name) if row.ended_at is not None]
    with gateway.store.transaction():
        unused = gateway.store.delete_app(owner, name)
        gateway.store.emit("delete", owner, name, {})
    fleet = gateway.fleet(owner, name)
    for runner in list(fleet.runners.values()):
        gateway.lifecycle.stop(runner, "the app was deleted")
    gateway.forget(fleet)
    for digest in unused:
        with contextlib.suppress(OSError):
            paths.blob(gateway.state, digest).unlink()
    _remove_logs(gateway, ended)  # those of the others go when the house is kept


def timeline(gateway: Gateway, owner: str, name: str) -> list[dict[str, Any]]:
    """Return samples of the app's load, oldest first, the present one last."""
    fleet = _fleet(gateway, owner, name)
    return [sample._asdict() for sample in (*fleet.samples, fleet.sample())]


def openapi(gateway: Gateway, owner: str, name: str) -> dict[str, Any]:
    """Return the OpenAPI document of the active revision."""
    return find(gateway, owner, name)[1].openapi


def find(gateway: Gateway, owner: str, name: str) -> tuple[App, Revision]:
    """Return an app and its active revision.

    Raises
    ------
    NotFoundError
        When there is no such app; the message names the nearest ones.
    """
    app = gateway.store.app(owner, name)
    revision = gateway.store.revision(app.revision) if app else None
    if app is None or revision is None:
        if gateway.store.has_revisions(owner, name):
            hint = f"'%fal revisions {name}' and '%fal logs {name}' show why"
            raise NotFoundError(f"no revision of {owner}/{name} came up yet; {hint}")
        names = [a.name for a in gateway.store.select(App, "owner = ?", owner)]
        known = ", ".join(get_close_matches(name, names, n=5, cutoff=0.0)) or "none yet"
        raise NotFoundError(f"there is no app {owner}/{name}; the nearest here: {known}")
    return app, revision


def check_deployed(gateway: Gateway, owner: str, name: str) -> None:
    """Raise NotFoundError when an app was never deployed, or deleted since."""
    if not gateway.store.has_revisions(owner, name):
        find(gateway, owner, name)


def _fleet(gateway: Gateway, owner: str, name: str) -> Fleet:
    find(gateway, owner, name)
    return gateway.fleet(owner, name)


def prune(gateway: Gateway) -> None:
    """Remove rows and logs of runners that ended long ago."""
    with gateway.store.transaction():
        _remove_logs(gateway, gateway.store.forget_runners(clock.ago(RUNNERS_KEPT)))


def _remove_logs(gateway: Gateway, runners: Iterable[str]) -> None:
    for runner_id in runners:
        with contextlib.suppress(OSError):
            paths.runner_log(gateway.state, runner_id).unlink()


def past_runners(
    gateway: Gateway, owner: str, name: str, ended_after: float = 0.0
) -> list[RunnerRow]:
    """Return the recorded runners of an app, the last one to end first.

    Those of a deleted app of the same name are not among them, nor those that ended before
    `ended_after` (unix seconds).
    """
    where = (
        "owner = ? AND app = ? AND COALESCE(ended_at, 1e12) >= ? "
        "AND revision IN (SELECT id FROM revisions) "
        "ORDER BY COALESCE(ended_at, 1e12) DESC, created_at DESC"
    )
    return gateway.store.select(RunnerRow, where, owner, name, ended_after)
