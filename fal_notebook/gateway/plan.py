"""Pure decisions of a deploy: effective options, what is inherited, scaling, up to date or not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fal_notebook.gateway.autoscaler import Scaling
from fal_notebook.gateway.store import LOCAL_REGION, App, Revision
from fal_notebook.machines import Host, MachineType, default_max_concurrency
from fal_notebook.options import APP_DEFAULTS, SCALING, Options


def inherited(
    explicit: Mapping[str, Any], app: App | None, active: Revision | None
) -> dict[str, Any]:
    """Return the scaling options that a new revision takes over from the running one.

    What the new code gives explicitly is not among them, nor what stands at its default.
    """
    if app is None or active is None:
        return {}
    present = {**{name: active.options[name] for name in SCALING}, **app.scaling}
    defaults = Options()
    return {
        name: value
        for name, value in sorted(present.items())
        if name not in explicit and value != getattr(defaults, name)
    }


def of_earlier(revision: Revision) -> list[str]:
    """Return the scaling options that neither the revision's code gave nor a default says."""
    defaults = Options().model_dump(mode="json")
    if revision.manifest.get("kind") in ("app", "sdk"):
        defaults |= APP_DEFAULTS
    names = sorted(SCALING - revision.explicit.keys())
    return [name for name in names if revision.options[name] != defaults[name]]


def rolled_back(
    app: App, active: Revision, target: Revision
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options of a rollback, and those of them that the code gave.

    Scaling is that of the active revision, with what ``scale`` changed since, the rest the
    target's own.
    """
    present = {**active.options, **app.scaling}
    options = {**target.options, **_only_scaling(present)}
    kept = {name: value for name, value in target.explicit.items() if name not in SCALING}
    return options, {**kept, **_only_scaling(active.explicit)}


def _only_scaling(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in SCALING}


def up_to_date(
    digest: str, target: str, active: Revision | None, distributions: Any = None
) -> bool:
    """Say whether the running revision has the same code, values, options and target.

    `distributions` are those that its image needs because the code imports them.
    """
    wanted = digest, target, distributions
    return active is not None and wanted == (
        *(active.digest, active.target),
        active.manifest.get("distributions"),
    )


def has_inherited(active: Revision, fresh: Options) -> bool:
    """Say whether the running revision scales otherwise than its code alone, `fresh`, says."""
    said = fresh.model_dump(mode="json", include=set(SCALING))
    return any(active.options[name] != value for name, value in said.items())


def effective(app: App | None, revision: Revision) -> dict[str, Any]:
    """Return the options in force: the revision's, with what ``scale`` changed since.

    Two servers with one fixed port cannot live on one machine.
    """
    options = {**revision.options, **(app.scaling if app else {})}
    if revision.manifest.get("fixed_port"):
        options["max_concurrency"] = 1
        options["min_concurrency"] = min(1, options["min_concurrency"])
    return options


def scaling(options: Mapping[str, Any], machine: MachineType, host: Host) -> Scaling:
    """Return the autoscaler's settings; an unset max_concurrency means what the host holds."""
    return Scaling(
        min_concurrency=options["min_concurrency"],
        max_concurrency=options["max_concurrency"] or default_max_concurrency(machine, host),
        max_multiplexing=options["max_multiplexing"],
        concurrency_buffer=options["concurrency_buffer"],
        concurrency_buffer_perc=options["concurrency_buffer_perc"],
        scaling_delay=options["scaling_delay"] or 0,
        keep_alive=options["keep_alive"],
    )


def region(wanted: Sequence[str] | None, taken: Iterable[str]) -> str:
    """Return the first of the wanted regions among those with the fewest runners."""
    count = Counter(taken)
    return min(wanted, key=lambda name: count[name]) if wanted else LOCAL_REGION


def retries(retry_config: Mapping[str, Any] | None) -> dict[str, int] | None:
    """Return how often the queue retries after each kind of failure, None for its own rules."""
    if retry_config is None:
        return None
    return {kind: value["retries"] for kind, value in retry_config.items() if value is not None}


def above_host(options: Mapping[str, Any], machine: MachineType, host: Host) -> list[str]:
    """Return what there is to say of a minimum that the host does not hold."""
    held, wanted = default_max_concurrency(machine, host), options["min_concurrency"]
    if options["max_concurrency"] or wanted <= held:
        return []
    return [
        f"min_concurrency={wanted} is above the {held} of {machine.name} that this machine holds; "
        "set max_concurrency too to have as many all the same"
    ]
