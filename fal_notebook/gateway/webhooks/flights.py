"""How many webhooks may be on their way, and to whom: dead targets leave room for the others."""

from __future__ import annotations

import resource
from collections import Counter

from fal_notebook.gateway.webhooks.table import Delivery

# On their way at once: in all, and to one target (host and port) that took its last one. Any other
# target, new or failing, gets one at a time, and all of these share three of four places.
AT_MOST = 256
PER_TARGET = 4


def room() -> int:
    """Return how many may be on their way; fewer where few files may be open (macOS: 256)."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return AT_MOST if files == resource.RLIM_INFINITY else min(AT_MOST, files // 4)


class Flights:
    """The deliveries on their way."""

    def __init__(self) -> None:
        self.targets: dict[str, str] = {}  # by request id
        self.proven: set[str] = set()  # the targets that took their last one
        self._room = room()

    @property
    def left(self) -> int:
        """How many more may start."""
        return self._room - len(self.targets)

    @property
    def left_to_unproven(self) -> int:
        """How many more may start to targets that did not take their last one."""
        flying = sum(target not in self.proven for target in self.targets.values())
        return min(self.left, self._room * 3 // 4 - flying)

    def full(self) -> list[str]:
        """Return the targets that get no more for now."""
        flying = Counter(self.targets.values())
        return [t for t, count in flying.items() if t not in self.proven or count >= PER_TARGET]

    def may_start(self, delivery: Delivery) -> bool:
        """Whether there is room for one to a target that is not full."""
        return (self.left if delivery.target in self.proven else self.left_to_unproven) > 0

    def start(self, delivery: Delivery) -> None:
        """Note that it is on its way."""
        self.targets[delivery.request_id] = delivery.target

    def end(self, delivery: Delivery) -> None:
        """Note that it is not on its way any more."""
        del self.targets[delivery.request_id]

    def note(self, target: str, took_it: bool) -> None:
        """Note whether a target took one."""
        (self.proven.add if took_it else self.proven.discard)(target)
