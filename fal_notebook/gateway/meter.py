"""What is billed of a runner, as fal does it: in which states, and for how long; pure."""

from __future__ import annotations

# As fal bills. Not while a runner is PENDING or fetches its image, nor once it has ended.
BILLED = ("SETUP", "IDLE", "RUNNING", "DRAINING", "TERMINATING")
_SERVING = ("IDLE", "RUNNING")


def billed(state: str, seconds: float, gpus: int = 0) -> float:
    """Return the seconds to bill for so many in a state: each GPU counts; never below 0."""
    return max(0.0, seconds) * max(1, gpus) if state in BILLED else 0.0


class Meter:
    """How long one runner was in each state. Times are of a clock that goes on evenly.

    Requests do not tell it when they begin and end: `look` sees that a few times a second at most.

    Parameters
    ----------
    gpus : int
        GPUs of the runner.
    """

    def __init__(self, gpus: int = 0) -> None:
        self.state = ""
        self._gpus = gpus
        self._at = 0.0  # until then all is counted
        self._seconds: dict[str, float] = {}

    def enter(self, state: str, now: float) -> None:
        """Be in another state from now on."""
        self._until(now)
        self.state = state

    def look(self, since: float, now: float, in_flight: int, last_request_at: float | None) -> None:
        """See whether the runner is at work; nothing has changed from the last look to `since`.

        From then on it is RUNNING until its last request ended, with the pauses between requests.
        """
        if self.state not in _SERVING:
            return
        worked_until = now if in_flight else last_request_at
        before = self._at
        self._until(since)
        if worked_until is not None and worked_until > before:
            self.state = "RUNNING"
            self._until(min(worked_until, now))
        self.state = "IDLE"
        self._until(now)
        self.state = "RUNNING" if in_flight else "IDLE"

    def add(self, state: str, seconds: float) -> None:
        """Count seconds of which the runner's states tell nothing."""
        more = billed(state, seconds, self._gpus)
        if more:
            self._seconds[state] = self._seconds.get(state, 0.0) + more

    def take(self, now: float) -> dict[str, float]:
        """Return the billed seconds since this was last asked, by state."""
        self._until(now)
        taken, self._seconds = self._seconds, {}
        return taken

    def _until(self, now: float) -> None:
        """Count up to `now` in the present state; what was counted is not counted again."""
        self.add(self.state, now - self._at)
        self._at = max(self._at, now)
