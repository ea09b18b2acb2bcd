"""The queue: it accepts requests durably, gives them to runners, retries, cancels, completes."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from fal_notebook.exceptions import StoreError
from fal_notebook.gateway import clock, errors, start_deadline
from fal_notebook.gateway.fleet import Fleet, Runner
from fal_notebook.gateway.headers import HINT, RAISED_STATUS, raised_status
from fal_notebook.gateway.logs.redaction import Redaction
from fal_notebook.gateway.queue import retry
from fal_notebook.gateway.queue.attempt import Attempt, failed
from fal_notebook.gateway.queue.followers import Followers
from fal_notebook.gateway.queue.journal import LARGEST_BATCH
from fal_notebook.gateway.queue.records import Records
from fal_notebook.gateway.queue.table import COMPLETED, IN_PROGRESS, Answer, QueuedRequest
from fal_notebook.gateway.tracing import Trace, Tracing

# When the disk is full, what must be written is tried again so often (seconds); that is logged less
# often.
DISK_PERIOD = 1.0
LOG_PERIOD = 60.0

# So long a runner of the last gateway may take to be heard of (seconds).
GO_ON = 10.0

_LOG = logging.getLogger(__name__)

_CANCELLED = failed(499, "the request was cancelled", "client_cancelled")
_NO_APP = failed(404, "the app was deleted", "bad_request")
_LOST = failed(503, "the gateway was ended while the request ran", "runner_disconnected")


class Queue:
    """All queued requests of a gateway.

    A request is durable when `submit` returns. It is given out once at a time; what failed is put
    back by the rules of `retry`. Each app's `Backlog` holds what waits; all else is in `records`.

    Parameters
    ----------
    state : Path
        The state folder.
    kill : callable
        Ends a runner at once: ``kill(runner, cause)``.
    redaction : Redaction
        Takes secrets out of the errors that are told.
    tracing : Tracing
        Records what becomes of requests.
    """

    def __init__(
        self,
        state: Path,
        kill: Callable[[Runner, str], None],
        redaction: Redaction,
        tracing: Tracing,
    ) -> None:
        self.records = Records(state)
        self.followers = Followers()
        self.on_webhook: Callable[[], None] = lambda: None
        self._kill = kill
        self._redaction = redaction
        self.tracing = tracing
        self._loop = asyncio.get_running_loop()
        self._attempts: dict[int, Attempt] = {}
        self._cancelled: set[int] = set()
        self._retries: dict[int, asyncio.TimerHandle] = {}
        self._deadlines: dict[int, asyncio.TimerHandle] = {}
        self._since: dict[int, float] = {}  # when requests that wait again began to
        self._tasks: set[asyncio.Task[None]] = set()
        self._warned_at = -LOG_PERIOD

    # --- accepting ---------------------------------------------------------------------------
    async def submit(self, fleet: Fleet, request: QueuedRequest, body: bytes | None) -> None:
        """Accept a request: it is on disk when this returns.

        Raises
        ------
        DiskFullError
            When there is no room; nothing of it stays.
        """
        await self.records.accept(request, body)
        fleet.metrics.received.inc()
        self._enqueue(fleet, request)

    def _enqueue(self, fleet: Fleet, request: QueuedRequest) -> None:
        """Let a request stand in line, as long as its deadline allows."""
        self._retries.pop(request.number, None)
        fleet.put_off.discard(request.number)
        if fleet.revision is None:
            self._spawn(self._complete(fleet, request, _NO_APP))
            return
        if request.attempts and _is_late(request, clock.now()):
            self._spawn(self._complete(fleet, request, _missed(request)))
            return
        if request.deadline is not None and request.number not in self._deadlines:
            self._deadlines[request.number] = self._loop.call_later(
                request.deadline - clock.now(), self._expire, fleet, request
            )
        fleet.queue(request.number, request.low, dict(request.headers).get(HINT))

    def _expire(self, fleet: Fleet, request: QueuedRequest) -> None:
        del self._deadlines[request.number]
        if self._take_out(fleet, request.number):
            self._spawn(self._complete(fleet, request, _missed(request)))

    def _take_out(self, fleet: Fleet, number: int) -> bool:
        """Take a request out that waits, in line or for its retry; say whether it did."""
        waiting = self._retries.pop(number, None)
        fleet.put_off.discard(number)
        if waiting is not None:
            waiting.cancel()
        return fleet.unqueue(number) or waiting is not None

    # --- working -----------------------------------------------------------------------------
    def run(self, fleet: Fleet, runner: Runner, number: int) -> None:
        """Work on a request with a runner whose slot is taken; the fleet calls this."""
        if number in self._deadlines:
            self._deadlines.pop(number).cancel()
        self._spawn(self._work(fleet, runner, number))

    async def _work(self, fleet: Fleet, runner: Runner, number: int) -> None:
        try:
            request = self.records.load(number)
            request.attempts += 1
            if not await self._begin(request, runner):
                request.attempts -= 1
                self._put_back(fleet, request, DISK_PERIOD)
                return
            trace = self.tracing.queued(fleet, request)
            trace.waited(self._since.pop(number, number / 1e6), runner)
            answer, failure = await self._try(fleet, runner, request, trace)
        finally:
            fleet.release(runner)
        await self._settle(fleet, request, answer, failure)

    async def _try(
        self, fleet: Fleet, runner: Runner, request: QueuedRequest, trace: Trace
    ) -> tuple[Answer, retry.Failure | None]:
        if request.number in self._cancelled:
            return _CANCELLED, None  # before anything of it was sent
        attempt = self._attempt(fleet, runner, request, trace)
        self._attempts[request.number] = attempt
        try:
            return await attempt.run()
        finally:
            del self._attempts[request.number]

    async def _begin(self, request: QueuedRequest, runner: Runner) -> bool:
        """Record that the request is at work now; False when that cannot be recorded."""
        try:
            await self.records.begin(request, runner.row.id)
        except StoreError as error:
            if self._loop.time() - self._warned_at > LOG_PERIOD:
                self._warned_at = self._loop.time()
                _LOG.warning("queued requests wait until they can be recorded: %s", error)
            return False
        self.followers.tell(request.number)
        return True

    def _attempt(
        self, fleet: Fleet, runner: Runner, request: QueuedRequest, trace: Trace
    ) -> Attempt:
        return Attempt(
            fleet,
            runner,
            request,
            self.records.body(request),
            self.records.answer_path(request.id),
            self._kill,
            self._redaction,
            trace,
        )

    async def _settle(
        self,
        fleet: Fleet,
        request: QueuedRequest,
        answer: Answer,
        failure: retry.Failure | None,
    ) -> None:
        """Complete a request, or put it back when its failure allows."""
        delay = None
        if request.number in self._cancelled and (failure or _is_cancelled(answer)):
            answer = _CANCELLED
        elif failure is not None:
            delay = retry.decide(_policy(fleet, request), failure, request.attempts)
        if delay is None:
            await self._complete(fleet, request, answer)
            return
        if answer is _LOST:
            self._spawn(self._go_on(fleet, request))
            return
        await _insist(functools.partial(self.records.put_back, request))
        self._put_back(fleet, request, delay)

    async def _go_on(self, fleet: Fleet, request: QueuedRequest) -> None:
        """Ask the runner that the last gateway asked: it may be at it still, and answer that."""
        runner = fleet.runners.get(request.runner)
        if runner is not None and await fleet.reserve(runner, GO_ON):
            self.run(fleet, runner, request.number)
            return
        await _insist(functools.partial(self.records.put_back, request))
        self._put_back(fleet, request, 0.0)

    def _put_back(self, fleet: Fleet, request: QueuedRequest, delay: float) -> None:
        if request.number in self._cancelled:
            self._spawn(self._complete(fleet, request, _CANCELLED))
            return
        self._since[request.number] = clock.now()
        if _is_late(request, clock.now() + delay):
            self._spawn(self._complete(fleet, request, _missed(request)))
        elif delay:
            again = self._loop.call_later(delay, self._enqueue, fleet, request)
            self._retries[request.number] = again
            fleet.put_off.add(request.number)
        else:
            self._enqueue(fleet, request)
        self.followers.tell(request.number)

    async def _complete(self, fleet: Fleet | None, request: QueuedRequest, answer: Answer) -> None:
        """Record the answer, as soon as there is room for it, and tell everyone who follows."""
        await _insist(functools.partial(self.records.complete, request, answer, clock.now()))
        await self._completed(fleet, request, answer)

    async def _completed(self, fleet: Fleet | None, request: QueuedRequest, answer: Answer) -> None:
        if request.webhook:
            self.on_webhook()
        self._cancelled.discard(request.number)
        self._since.pop(request.number, None)
        if request.number in self._deadlines:
            self._deadlines.pop(request.number).cancel()
        if fleet is not None:
            path, seconds = request.target.partition(b"?")[0], clock.now() - request.number / 1e6
            fleet.answered(path, _meant(answer), seconds, request.user)
        if fleet is not None and answer.error_type in errors.PLATFORM:
            await self._record(fleet, request, answer)
        self.followers.tell(request.number)
        with contextlib.suppress(OSError):  # the next gateway removes it
            self.records.discard_body(request)

    async def _record(self, fleet: Fleet, request: QueuedRequest, answer: Answer) -> None:
        """Add a failure of ours to the app's errors, with the beginning of the body."""
        given, beginning = dict(request.headers).get(b"content-type", b""), b""
        with contextlib.suppress(StoreError):
            async with contextlib.aclosing(self.records.body(request)) as pieces:
                beginning = await anext(pieces, b"")
        began = start_deadline.BY_USER not in answer.headers
        errors.of_platform(
            *(fleet, answer.error_type, answer.error, request.id, beginning, given, began)
        )

    # --- cancelling --------------------------------------------------------------------------
    async def cancel(self, fleet: Fleet | None, request: QueuedRequest) -> bool:
        """Cancel a request; False when it is completed already.

        One that waits is completed at once; one at work when its app has answered.

        Raises
        ------
        DiskFullError
            When there is no room to record it; the request goes on.
        """
        if request.state == COMPLETED:
            return False
        if fleet is not None and self._take_out(fleet, request.number):
            try:
                await self.records.complete(request, _CANCELLED, clock.now())
            except StoreError:
                self._enqueue(fleet, request)
                raise
            await self._completed(fleet, request, _CANCELLED)
            return True
        self._cancelled.add(request.number)
        try:
            await self.records.cancel(request)
        except StoreError:  # the next gateway would not know it
            self._cancelled.discard(request.number)
            raise
        if request.number in self._attempts:
            self._attempts[request.number].cancel()
        return True

    # --- beginning and end -------------------------------------------------------------------
    async def recover(self, find: Callable[[str, str], Fleet | None]) -> None:
        """Take up what the last gateway left: what waited waits, what was at work is retried.

        What waited for a deleted app is completed later: that may be much.
        """
        self.records.sweep()
        dropped = []
        for request in self.records.unfinished():
            fleet = find(request.owner, request.app)
            if fleet is None:
                dropped.append(request.number)
            elif request.cancelled:
                await self._complete(fleet, request, _CANCELLED)
            elif request.state == IN_PROGRESS:
                # Its attempt counts: what it runs may be what ends gateways.
                lost = retry.Failure(503, "runner_disconnected")
                await self._settle(fleet, request, _LOST, lost)
            else:
                self._enqueue(fleet, request)
        self._spawn(self._drop(None, dropped))

    def drop(self, fleet: Fleet) -> None:
        """Complete every request that waits for an app that was deleted."""
        waiting = [fleet.waiting.backlog.pop() for _ in range(len(fleet.waiting.backlog))]
        self._spawn(self._drop(fleet, waiting))

    async def _drop(self, fleet: Fleet | None, waiting: list[int]) -> None:
        for start in range(0, len(waiting), LARGEST_BATCH):
            requests = map(self.records.load, waiting[start : start + LARGEST_BATCH])
            await asyncio.gather(*(self._complete(fleet, r, _NO_APP) for r in requests))

    async def close(self) -> None:
        """Stop working; what is not completed is taken up by the next gateway."""
        for timer in (*self._retries.values(), *self._deadlines.values()):
            timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.records.close()

    def _spawn(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _LOG.error("work on a queued request failed", exc_info=error)


def _is_late(request: QueuedRequest, begin: float) -> bool:
    """Say whether an attempt that begins then begins too late."""
    return request.deadline is not None and begin > request.deadline


def _missed(request: QueuedRequest) -> Answer:
    missed = start_deadline.missed(dict(request.headers), request.attempts)
    return failed(504, missed, start_deadline.KIND, start_deadline.BY_USER)


def _is_cancelled(answer: Answer) -> bool:
    """Whether a runner answered that it ended the request because of its cancel."""
    return answer.error_type == _CANCELLED.error_type


def _meant(answer: Answer) -> int:
    """Return the status of an answer; of a call from Python whose function raised, the error's."""
    told = dict(answer.headers).get(RAISED_STATUS)
    if told is not None:
        return raised_status(told)
    return 500 if answer.status < 400 and answer.error_type else answer.status


def _policy(fleet: Fleet, request: QueuedRequest) -> retry.Policy:
    return retry.Policy(request.no_retry, fleet.skip_retry_conditions, fleet.retries)


async def _insist(write: Callable[[], Awaitable[None]]) -> None:
    """Write what must not be lost, as soon as there is room for it."""
    while True:
        try:
            await write()
            return
        except StoreError:
            await asyncio.sleep(DISK_PERIOD)
