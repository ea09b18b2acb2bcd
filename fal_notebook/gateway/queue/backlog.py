"""One app's queued requests in memory: who is next, and how many stand before whom.

A request is its number here: the unix time of its arrival in microseconds, unique and rising, so
that a number says the order and the time. Everything else about it is in the journal.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort

# Numbers already given out are removed from the front of the list when they are so many.
SPENT_KEPT = 1024


class Backlog:
    """Queued requests in order of arrival; those of low priority come after all others."""

    def __init__(self) -> None:
        self._normal = Line()
        self._low = Line()

    def __len__(self) -> int:
        return len(self._normal) + len(self._low)

    def add(self, number: int, low: bool) -> None:
        """Take in a request; one that was given out before stands where it stood."""
        (self._low if low else self._normal).add(number)

    def remove(self, number: int) -> bool:
        """Take a request out; say whether it was there."""
        return self._normal.remove(number) or self._low.remove(number)

    def pop(self) -> int:
        """Give out the next request."""
        return (self._normal or self._low).pop()

    def position(self, number: int) -> int | None:
        """Return how many requests come before this one, None when it does not wait."""
        at = self._normal.index(number)
        if at is not None:
            return at
        at = self._low.index(number)
        return None if at is None else len(self._normal) + at

    @property
    def has_normal(self) -> bool:
        """Whether a request of normal priority waits."""
        return len(self._normal) > 0

    def arrived(self, until: float) -> int:
        """Return how many arrived at `until` (unix seconds) or before."""
        return self._normal.up_to(until) + self._low.up_to(until)

    def first_after(self, at: float) -> float | None:
        """Return when the first one after `at` arrived, None when there is none."""
        found = [t for line in (self._normal, self._low) if (t := line.after(at)) is not None]
        return min(found, default=None)


class Line:
    """Rising numbers, taken from the front; 100,000 of them cost microseconds per step."""

    def __init__(self) -> None:
        self._numbers: list[int] = []
        self._start = 0

    def __len__(self) -> int:
        return len(self._numbers) - self._start

    @property
    def first(self) -> int:
        """The lowest number."""
        return self._numbers[self._start]

    def add(self, number: int) -> None:
        """Insert a number."""
        insort(self._numbers, number, lo=self._start)

    def pop(self) -> int:
        """Remove the lowest number and return it."""
        number = self.first
        self._start += 1
        if self._start > max(SPENT_KEPT, len(self)):
            del self._numbers[: self._start]
            self._start = 0
        return number

    def remove(self, number: int) -> bool:
        """Remove a number; say whether it was there."""
        at = self.index(number)
        if at is not None:
            del self._numbers[self._start + at]
        return at is not None

    def index(self, number: int) -> int | None:
        """Return how many numbers are lower, None when this one is not there."""
        at = bisect_left(self._numbers, number, lo=self._start)
        found = at < len(self._numbers) and self._numbers[at] == number
        return at - self._start if found else None

    def up_to(self, at: float) -> int:
        """Return how many numbers are times up to `at` (unix seconds)."""
        return bisect_right(self._numbers, round(at * 1e6), lo=self._start) - self._start

    def after(self, at: float) -> float | None:
        """Return the first time after `at` (unix seconds), None when there is none."""
        index = self._start + self.up_to(at)
        return self._numbers[index] / 1e6 if index < len(self._numbers) else None
