"""When a failed request of the queue is tried again: every rule of fal's, one row each."""

from __future__ import annotations

import itertools

import pytest

from fal_notebook.gateway.queue.retry import ATTEMPTS, Failure, Policy, conditions, decide

LOST = "runner_disconnected"
ALWAYS, NEVER = Policy(), Policy(no_retry=True)
SKIP = {name: Policy(skip=(name,)) for name in ("server_error", "timeout", "connection_error")}


@pytest.mark.parametrize(
    ("policy", "failure", "again"),
    [
        # by status of the app's answer
        *((ALWAYS, Failure(status), False) for status in (429, 500, 501, 502, 505, 599)),
        (ALWAYS, Failure(503), True),
        (ALWAYS, Failure(504), True),
        # by our own error type: a crash, request_timeout
        (ALWAYS, Failure(503, LOST), True),
        (ALWAYS, Failure(502, "runner_incomplete_response"), True),
        (ALWAYS, Failure(503, "runner_connection_refused"), True),
        (ALWAYS, Failure(503, "runner_connection_error"), True),
        (ALWAYS, Failure(503, "runner_connection_timeout"), True),
        (ALWAYS, Failure(504, "request_timeout"), True),
        (ALWAYS, Failure(507, "internal_error"), False),
        (ALWAYS, Failure(400, "bad_request"), False),
        # the app's header, on 5xx and 429 only
        (ALWAYS, Failure(500, needs_retry=True), True),
        (ALWAYS, Failure(429, needs_retry=True), True),
        (ALWAYS, Failure(503, needs_retry=False), False),
        (ALWAYS, Failure(504, needs_retry=False), False),
        (ALWAYS, Failure(404, needs_retry=True), False),
        (ALWAYS, Failure(200, needs_retry=True), False),
        # the caller's header has the last word
        (NEVER, Failure(503), False),
        (NEVER, Failure(500, needs_retry=True), False),
        (NEVER, Failure(503, LOST), False),
        (NEVER, Failure(504, "request_timeout"), False),
        # skip_retry_conditions
        (SKIP["server_error"], Failure(503), False),
        (SKIP["server_error"], Failure(504), True),
        (SKIP["server_error"], Failure(503, LOST), False),
        (SKIP["server_error"], Failure(503, "runner_connection_refused"), True),
        (SKIP["server_error"], Failure(504, "request_timeout"), True),
        (SKIP["timeout"], Failure(504), False),
        (SKIP["timeout"], Failure(504, "request_timeout"), False),
        (SKIP["timeout"], Failure(503), True),
        (SKIP["connection_error"], Failure(503, LOST), False),
        (SKIP["connection_error"], Failure(502, "runner_incomplete_response"), False),
        (SKIP["connection_error"], Failure(503), True),
        # nothing was begun: another runner is no second attempt of the function
        (NEVER, Failure(503, "runner_connection_refused", begun=False), True),
        (SKIP["connection_error"], Failure(503, begun=False), True),
    ],
)
def test_the_first_failure(policy: Policy, failure: Failure, again: bool) -> None:
    assert (decide(policy, failure, 1) is not None) == again


@pytest.mark.parametrize(
    ("retries", "failure", "attempts"),
    [
        ({"timeout": 2}, Failure(504, "request_timeout"), 3),
        ({"timeout": 0}, Failure(504, "request_timeout"), 1),
        ({"timeout": 2}, Failure(503), ATTEMPTS),
        ({"server_error": 1, "connection_error": 0}, Failure(503), 2),
        ({"server_error": 1, "connection_error": 0}, Failure(503, LOST), 1),
        ({"server_error": 1}, Failure(503, LOST), 2),
        ({"server_error": 99}, Failure(503), ATTEMPTS),
        ({"timeout": 1}, Failure(504), 2),
        (None, Failure(503), ATTEMPTS),
        (None, Failure(503, begun=False), ATTEMPTS),
        (None, Failure(500, needs_retry=True), ATTEMPTS),
    ],
)
def test_how_often(retries: dict[str, int] | None, failure: Failure, attempts: int) -> None:
    made = (n for n in itertools.count(1) if decide(Policy(retries=retries), failure, n) is None)
    assert next(made) == attempts


def test_the_waits_grow_and_stay_bounded() -> None:
    waits = [decide(ALWAYS, Failure(503), attempt) for attempt in range(1, ATTEMPTS)]
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]


@pytest.mark.parametrize(
    ("failure", "names"),
    [
        (Failure(503), {"server_error"}),
        (Failure(504), {"timeout"}),
        (Failure(504, "request_timeout"), {"timeout"}),
        (Failure(503, LOST), {"server_error", "connection_error"}),
        (Failure(500), set()),
        (Failure(429), set()),
    ],
)
def test_the_names_of_a_failure(failure: Failure, names: set[str]) -> None:
    assert set(conditions(failure)) == names
