"""Which lines of a log are new, for those that tell them on: the gateway and its clients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


def untold(told: Iterable[T], now: Iterable[T]) -> list[T]:
    """Return the lines of `now` that were not told, in their order.

    Of very many lines only the last ones are told; those of two attempts may come in another
    order after a restart of the gateway.
    """
    known, new = Counter(map(repr, told)), []
    for line in now:
        if known[repr(line)]:
            known[repr(line)] -= 1
        else:
            new.append(line)
    return new
