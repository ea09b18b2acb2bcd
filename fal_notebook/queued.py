"""What handles and their endpoints have in common: calls through the queue, alone and many."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterator, Iterator
from typing import Any

from fal_notebook.submitted import Submitted
from fal_notebook.submitting import Submitter


class Queued:
    """Something that can be called through the queue."""

    @abstractmethod
    def with_options(self, **options: Any) -> Submitter:
        """Return what submits and maps with options of the queue.

        They are `priority` ("normal" or "low"), `start_timeout` in seconds, `webhook_url`,
        `max_queue_length` and `no_retry`: see `QueueOptions`.
        """

    def submit(self, /, *args: Any, **kwargs: Any) -> Submitted:
        """Put a call into the queue, durably, and return the request; its `result` waits."""
        __tracebackhide__ = True
        return self.with_options().submit(*args, **kwargs)

    async def asubmit(self, /, *args: Any, **kwargs: Any) -> Submitted:
        """Put a call into the queue without blocking."""
        return await self.with_options().asubmit(*args, **kwargs)

    def map(self, *iterables: Any, **limits: Any) -> Iterator[Any]:
        """Yield the results of queued calls, one per item of one or more iterables, in order.

        The iterables are read as results are taken, at most `max_in_flight` (32) items ahead. An
        exception is raised at its place, or yielded with ``return_exceptions=True``. Closing the
        iterator cancels what is under way.
        """
        return self.with_options().map(*iterables, **limits)

    def amap(self, *iterables: Any, **limits: Any) -> AsyncIterator[Any]:
        """Yield as `map` does, for ``async for``; the iterables may be async."""
        return self.with_options().amap(*iterables, **limits)
