"""How many webhooks may be on their way, and to whom: dead targets leave room for the others."""

from __future__ import annotations

import resource
from collections import Counter

from fal_notebook.gateway.webhooks.table import Delivery
from fal_notebook.gateway.webhooks.targets import address_of, parse

# On their way at once: in all, and to one target. Targets are proven that took their last one, or
# said at once that they do not; the others, new or hanging, share three of four places, and those
# of one address have as many of them as PER_ADDRESS.
AT_MOST = 1024
PER_TARGET = 4
PER_ADDRESS = 32
# So many proven paths are targets of their own.
OWN_LANES = 1024
# Attempts to these younger than FRESH (seconds) are at most so large a share of the places left, of
# all and of an address's own. What answers at once passes through; what does not takes fewer and
# fewer, so that in the 15 s until it is given up there is always a place for a target that nobody
# called before.
FRESH = 1.0
FRESH_SHARE = 5


def room() -> int:
    """Return how many may be on their way; fewer where few files may be open (macOS: 256)."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return AT_MOST if files == resource.RLIM_INFINITY else min(AT_MOST, files // 4)


class Flights:
    """The deliveries on their way."""

    def __init__(self) -> None:
        self.targets: dict[str, str] = {}  # by request id
        self.proven: set[str] = set()  # targets whose last one held no place for long
        self._own: dict[str, None] = {}  # those of them that are one path, the newest last
        self._fresh: set[str] = set()  # request ids
        self._room = room()

    @property
    def left(self) -> int:
        """How many more may start."""
        return self._room - len(self.targets)

    @property
    def left_to_unproven(self) -> int:
        """How many more may start now to targets that are not proven."""
        flying = {id for id, target in self.targets.items() if target not in self.proven}
        free = min(self.left, self._room * 3 // 4 - len(flying))
        return _startable(free, len(flying & self._fresh))

    def full(self) -> list[str]:
        """Return the targets that get no more for now."""
        flying = Counter(self.targets.values())
        return [target for target, count in flying.items() if count >= PER_TARGET]

    def crowded(self) -> tuple[list[str], list[str]]:
        """Return the addresses where only proven targets get more for now, and these targets."""
        addresses = {address_of(target) for target in self.targets.values()}
        crowded = [address for address in addresses if self._left_at(address) <= 0]
        proven = self.proven if crowded else ()
        return crowded, [target for target in proven if address_of(target) in crowded]

    def _left_at(self, address: str) -> int:
        """How many more may start now to targets there that are not proven."""
        flying = {
            id
            for id, target in self.targets.items()
            if target not in self.proven and address_of(target) == address
        }
        return _startable(PER_ADDRESS - len(flying), len(flying & self._fresh))

    def may_start(self, delivery: Delivery) -> bool:
        """Whether there is room for one to a target that is not full."""
        if delivery.target in self.proven:
            return self.left > 0
        return self.left_to_unproven > 0 and self._left_at(address_of(delivery.target)) > 0

    def start(self, delivery: Delivery) -> None:
        """Note that it is on its way."""
        self.targets[delivery.request_id] = delivery.target
        self._fresh.add(delivery.request_id)

    def slow(self, delivery: Delivery) -> None:
        """Note that it has been on its way for longer than FRESH."""
        self._fresh.discard(delivery.request_id)

    def end(self, delivery: Delivery) -> None:
        """Note that it is not on its way any more."""
        del self.targets[delivery.request_id]
        self._fresh.discard(delivery.request_id)

    def lane_of(self, url: str) -> str:
        """Return the target of a URL: one of its own if it is proven."""
        target = parse(url)
        return target.own_lane if target.own_lane in self._own else target.lane

    def note(self, delivery: Delivery, took_it: bool) -> list[str]:
        """Note how one ended, before `end`; return the lanes of one path that are none any more."""
        own = parse(delivery.url).own_lane
        known = own in self._own
        self._own.pop(own, None)
        if took_it or delivery.request_id in self._fresh:
            self._own[own] = None
            self.proven |= {own, delivery.target}
            given_up = list(self._own)[:-OWN_LANES]
        else:
            self.proven.discard(delivery.target)
            given_up = [own] if known else []
        for lane in given_up:
            self._own.pop(lane, None)
            self.proven.discard(lane)
        return given_up


def _startable(free: int, fresh: int) -> int:
    """Return how many may start now of those for whom so many places are free."""
    return min(free, max(1, free // FRESH_SHARE) - fresh)
