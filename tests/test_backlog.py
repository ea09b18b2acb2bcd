"""The line of queued requests does what a sorted list does, only faster."""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fal_notebook.gateway.queue import backlog
from fal_notebook.gateway.queue.backlog import Backlog

FIRST = 1_770_000_000_000_000


class AgainstASortedList(RuleBasedStateMachine):
    """Adds, gives out, removes and puts back; `model` is a sorted list of (low, number)."""

    def __init__(self) -> None:
        super().__init__()
        self.backlog = Backlog()
        self.model: list[tuple[bool, int]] = []
        self.known: list[tuple[bool, int]] = []

    @rule(low=st.booleans(), gap=st.integers(1, 3_000_000))
    def arrive(self, low: bool, gap: int) -> None:
        number = (max(n for _, n in self.known) if self.known else FIRST) + gap
        self.known.append((low, number))
        self._add((low, number))

    @precondition(lambda self: self.model)
    @rule(count=st.integers(1, 5))
    def give_out(self, count: int) -> None:
        for _ in range(min(count, len(self.model))):
            assert self.backlog.pop() == self.model.pop(0)[1]

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def put_back(self, data: Any) -> None:
        entry = data.draw(st.sampled_from(self.known))
        if entry not in self.model:
            self._add(entry)

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def remove(self, data: Any) -> None:
        entry = data.draw(st.sampled_from(self.known))
        assert self.backlog.remove(entry[1]) == (entry in self.model)
        if entry in self.model:
            self.model.remove(entry)

    @precondition(lambda self: self.known)
    @rule(data=st.data(), off=st.integers(-2, 2))
    def look(self, data: Any, off: int) -> None:
        number = data.draw(st.sampled_from(self.known))[1] + off
        numbers = sorted(n for _, n in self.model)
        at = bisect_right(numbers, number)
        assert self.backlog.arrived(number / 1e6) == at
        later = numbers[at] / 1e6 if at < len(numbers) else None
        assert self.backlog.first_after(number / 1e6) == later

    @invariant()
    def the_same(self) -> None:
        assert len(self.backlog) == len(self.model)
        assert self.backlog.has_normal == any(not low for low, _ in self.model)
        for low, number in self.known:
            expected = self.model.index((low, number)) if (low, number) in self.model else None
            assert self.backlog.position(number) == expected

    def _add(self, entry: tuple[bool, int]) -> None:
        self.backlog.add(entry[1], entry[0])
        self.model = sorted([*self.model, entry])


backlog.SPENT_KEPT, _spent = 2, backlog.SPENT_KEPT
TestAgainstASortedList = AgainstASortedList.TestCase
TestAgainstASortedList.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
