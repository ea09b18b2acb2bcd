"""Which states of a runner follow which: each is recorded with its cause, no other is."""

from __future__ import annotations

import pytest
from inside import fleet_of

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
