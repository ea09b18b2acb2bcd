"""Whether a queued request that failed is tried again, and when: a pure function.

The rules are those of fal's page on retries: 503, 504, a crash and request_timeout are tried
again, other answers are not; the app's header and then the caller's have the last word.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

ATTEMPTS = 10
FIRST_DELAY = 0.1
LONGEST_DELAY = 10.0

SERVER_ERROR, TIMEOUT, CONNECTION_ERROR = "server_error", "timeout", "connection_error"

# In fal's table a lost runner stands under both: whoever names one of them means it.
_LOST = (SERVER_ERROR, CONNECTION_ERROR)
_BY_STATUS = {503: (SERVER_ERROR,), 504: (TIMEOUT,)}
_BY_ERROR = {
    "request_timeout": (TIMEOUT,),
    "runner_disconnected": _LOST,
    "runner_incomplete_response": _LOST,
    "runner_connection_refused": (CONNECTION_ERROR,),
    "runner_connection_error": (CONNECTION_ERROR,),
    "runner_connection_timeout": (CONNECTION_ERROR,),
}


@dataclass(frozen=True)
class Policy:
    """What caller and app say about retries.

    `no_retry` is the caller's header, `skip` the option skip_retry_conditions, `retries` how many
    retry_config allows per condition.
    """

    no_retry: bool = False
    skip: Collection[str] = ()
    retries: Mapping[str, int] | None = None


@dataclass(frozen=True)
class Failure:
    """How an attempt ended: the status, our error type if it is ours, and the app's wish.

    `needs_retry` is the response header x-fal-needs-retry, None without it. `begun` is False when
    the runner did not accept the request, so that its function was not called.
    """

    status: int
    error_type: str = ""
    needs_retry: bool | None = None
    begun: bool = True


def decide(policy: Policy, failure: Failure, attempt: int) -> float | None:
    """Return after how many seconds the request is tried again, None when it is not.

    `attempt` counts from 1.
    """
    if attempt >= ATTEMPTS or not _wanted(policy, failure, attempt):
        return None
    return min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** (attempt - 1))


def conditions(failure: Failure) -> tuple[str, ...]:
    """Return which of fal's retry conditions a failure is, none when it is not tried again."""
    return _BY_ERROR.get(failure.error_type, _BY_STATUS.get(failure.status, ()))


def _wanted(policy: Policy, failure: Failure, attempt: int) -> bool:
    if not failure.begun:
        return True
    if policy.no_retry:
        return False
    if failure.needs_retry is not None and (failure.status >= 500 or failure.status == 429):
        return failure.needs_retry
    found = conditions(failure)
    if not found or any(name in policy.skip for name in found):
        return False
    return attempt <= min((policy.retries or {}).get(name, ATTEMPTS) for name in found)
