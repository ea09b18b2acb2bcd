"""Which states of a runner follow which: each is recorded with its cause, no other is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from inside import close_gateway, deployed, fleet_of, open_gateway, states
from runner_bench import PLACEMENT

from fal_notebook.backends.base import Placement
from fal_notebook.backends.images import Images
from fal_notebook.gateway.fleet import Runner
from fal_notebook.gateway.states import States
from fal_notebook.gateway.store import RunnerRow, Store
from fal_notebook.gateway.transitions import ENDING, FOLLOWS, LIVE, bury

# RUNNING is shown of a runner with requests and never recorded.
RECORDED = [name for name in FOLLOWS if name not in ("", "RUNNING")]
ALLOWED = [(one, two) for one in FOLLOWS if one != "RUNNING" for two in FOLLOWS[one]]
WALKED = [pair for pair in ALLOWED if pair[1] != "RUNNING"]
REFUSED = [(one, two) for one in ["", *RECORDED] for two in FOLLOWS if (one, two) not in WALKED] + [
    ("NOWHERE", "IDLE"),
    ("IDLE", "NOWHERE"),
]


def row(state: str) -> RunnerRow:
    return RunnerRow("r", "o", "a", "v1", state, "s", "XS")


async def entered(store: Store, before: str, after: str) -> RunnerRow:
    runner = Runner(row(before), since=0.0)
    States(fleet_of(0), runner, store, lambda fleet: None).enter(after, "a reason")
    return runner.row


@pytest.mark.parametrize(("before", "after"), WALKED)
async def test_a_change_is_stored_and_emitted_with_its_cause(
    store: Store, before: str, after: str
) -> None:
    changed = await entered(store, before, after)
    (stored,) = store.select(RunnerRow)
    (event,) = store.events(0)
    assert (changed.state, stored.state, stored.cause) == (after, after, "a reason")
    told = {"runner": "r", "revision": "v1", "state": after, "cause": "a reason"}
    assert (event.kind, event.owner, event.app, event.data) == ("runner", "o", "a", told)
    assert changed.cause == ("a reason" if after in ENDING else "")  # why it lives is no end


@pytest.mark.parametrize(("before", "after"), REFUSED)
async def test_what_cannot_follow_is_refused_and_changes_nothing(
    store: Store, before: str, after: str
) -> None:
    with pytest.raises(ValueError, match="a runner cannot go from"):
        await entered(store, before, after)
    assert (store.select(RunnerRow), store.events(0)) == ([], [])


async def test_idle_is_running_while_there_are_requests() -> None:
    runner = Runner(row("IDLE"), since=0.0, in_flight=1)
    assert runner.state == "RUNNING"
    runner.in_flight = 0
    assert runner.state == "IDLE"


def test_every_state_can_be_reached_and_every_life_ends() -> None:
    assert set().union(*FOLLOWS.values()) == set(FOLLOWS) - {""}
    assert set(RECORDED) == LIVE | ENDING
    ends = {"TERMINATED"}
    for _ in FOLLOWS:
        ends |= {state for state, after in FOLLOWS.items() if after & ends}
    assert ends == set(FOLLOWS)


@pytest.mark.parametrize("state", RECORDED)
def test_what_is_left_of_nobody_is_buried(store: Store, state: str) -> None:
    left = row(state)
    bury(store, left, "the app was deleted")
    assert left.state == "TERMINATED"
    states = [event.data["state"] for event in store.events(0)]
    assert all(two in FOLLOWS[one] for one, two in zip([state, *states], states, strict=False))


async def test_a_runner_whose_image_is_fetched_at_its_start_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = open_gateway(tmp_path)
    start = gateway.targets.local.start

    async def pulls(spec: Any, environment: dict[str, str], placement: Placement) -> Any:
        placement.on_pull()
        return await start(spec, environment, placement)

    monkeypatch.setattr(gateway.targets.local, "start", pulls)
    try:
        (runner,) = (await deployed(gateway, "def f(): return 1")).runners.values()
        told = states(gateway, runner.row.id)
        assert [state for state, _ in told] == ["PENDING", "DOCKER_PULL", "SETUP", "IDLE"]
        assert told[1][1] == "its image is fetched again"
    finally:
        await close_gateway(gateway)


@pytest.mark.parametrize(
    ("name", "found", "told"),
    [("a@sha256:0", None, ["pull", "fetch"]), ("a@sha256:0", "id", []), ("a:1", None, [])],
)
async def test_an_image_is_fetched_at_a_start_only_where_it_was_removed(
    name: str, found: str | None, told: list[str]
) -> None:
    heard: list[str] = []

    async def called(*_: Any) -> str | None:
        return found

    async def fetch(*_: Any) -> None:
        heard.append("fetch")

    images = Images.__new__(Images)
    engine, pulling = SimpleNamespace(image_id=None), SimpleNamespace(fetch=fetch)
    vars(images).update(_call=called, _engine=engine, _pulls=pulling)
    await images.restore(name, replace(PLACEMENT, on_pull=lambda: heard.append("pull")))
    assert heard == told
