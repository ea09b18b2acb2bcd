"""Which GPUs of this machine are free and which runner holds the others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from fal_notebook.exceptions import BuildError
from fal_notebook.machines import gpus_text

# How often a runner that waits looks whether it is still wanted (seconds).
PERIOD = 0.1


class Gpus:
    """Gives each runner GPUs of its own; who gets none waits.

    Parameters
    ----------
    ids : sequence of str
        What there is: numbers, or UUIDs, as in ``CUDA_VISIBLE_DEVICES``.
    """

    def __init__(self, ids: Sequence[str]) -> None:
        self._ids = tuple(ids)
        self._held: dict[str, tuple[str, ...]] = {}
        self._waiting: dict[str, int] = {}

    @property
    def total(self) -> int:
        """How many GPUs the machine has, held or free."""
        return len(self._ids)

    def free(self) -> tuple[str, ...]:
        """Return the GPUs that no runner holds."""
        taken = {gpu for held in self._held.values() for gpu in held}
        return tuple(gpu for gpu in self._ids if gpu not in taken)

    def of(self, runner: str) -> tuple[str, ...]:
        """Return the GPUs of a runner."""
        return self._held.get(runner, ())

    def waits(self, runner: str) -> str:
        """Return what a runner waits for in words, "" of one that does not wait."""
        count = self._waiting.get(runner)
        return f"waits for {count} of {gpus_text(self.total)}" if count else ""

    def hold(self, runner: str, ids: Sequence[str]) -> None:
        """Know that a runner has these GPUs."""
        if ids:
            self._held[runner] = tuple(ids)

    def give_back(self, runner: str) -> None:
        """Let others have the GPUs of a runner that has ended."""
        self._held.pop(runner, None)

    async def take(
        self,
        runner: str,
        count: int,
        wanted: Callable[[], bool],
        on_wait: Callable[[str], None],
    ) -> tuple[str, ...]:
        """Return `count` free GPUs, once there are so many; those of the lowest numbers.

        Who has to wait for them is told so first, by `on_wait`.

        Raises
        ------
        BuildError
            When the machine has fewer, or the runner is not `wanted` any more.
        """
        if count > self.total:  # the machine has lost some since the deploy
            raise BuildError(
                f"a runner needs {count} GPUs and this machine has {self.total}; deploy again, "
                "or give another machine_type or num_gpus"
            )
        if len(self.free()) < count:
            self._waiting[runner] = count
            on_wait(self.waits(runner))
            try:
                await self._until_free(count, wanted)
            finally:
                del self._waiting[runner]
        taken = self.free()[:count]
        self.hold(runner, taken)
        return taken

    async def _until_free(self, count: int, wanted: Callable[[], bool]) -> None:
        while len(self.free()) < count:
            await asyncio.sleep(PERIOD)
            if not wanted():
                raise BuildError("the runner was ended while it waited for a GPU")
