"""Whether a runner is well: asks it as the option ``health_check`` says, and counts."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from urllib.parse import quote

from fal_notebook.gateway import clock
from fal_notebook.gateway.fleet import Runner
from fal_notebook.gateway.headers import request_head
from fal_notebook.gateway.store import Revision
from fal_notebook.option_types import HealthCheck
from fal_notebook.runner.spec import SECRET

# Between two regular checks, and between two of a runner that has not passed one (seconds).
PERIOD = 15.0
AGAIN = 0.25
# Every app answers it to GET; other paths of an app are endpoints, which are called by POST.
HEALTH = "/health"
# What an endpoint answers that takes more than the empty body of a check: it works.
REFUSED = 422


def check_of(revision: Revision) -> HealthCheck | None:
    """Return how runners of a revision are asked, with all that follows from it; None: not."""
    given = revision.options.get("health_check")
    if given is None:
        return None
    check = HealthCheck.model_validate(given)
    endpoint = revision.manifest.get("kind") in ("app", "sdk") and check.path != HEALTH
    method = check.method or ("POST" if endpoint else "GET")
    start = max(check.start_period_seconds, revision.options["startup_timeout"] or 0)
    return check.model_copy(update={"method": method, "start_period_seconds": start})


def count(failures: int, wrong: str, age: float, check: HealthCheck) -> int:
    """Return how many checks in a row count as failed after one more of a runner of that age."""
    return failures + 1 if wrong and age >= check.start_period_seconds else 0


class Health:
    """Asks one runner.

    Parameters
    ----------
    check : HealthCheck
        As `check_of` returns it.

    Attributes
    ----------
    answered : bool
        Whether the last check was answered: a runner that answers none is stuck.
    """

    def __init__(self, runner: Runner, check: HealthCheck) -> None:
        self.answered = False
        self._runner = runner
        self._check = check
        self._name = f"its health check {check.method} {check.path}"

    async def until_well(self, note: Callable[[str], None]) -> str:
        """Ask until the runner passes; return "", or why it never will. `note` hears what lacks."""
        while wrong := await self._ask():
            if wrong in ("answers 404", "answers 405") and self._runner.direct is None:
                return f"{self._name} {wrong}; serve that path so, or change health_check"
            note(f"{self._name} {wrong}")
            await asyncio.sleep(AGAIN)
        return ""

    async def until_unwell(self) -> str:
        """Ask now and then, and at once when an answer forces it; return what came of it."""
        failures, wrong = 0, ""
        while failures < self._check.failure_threshold:
            await self._due()
            wrong = await self._ask()
            age = clock.now() - self._runner.began
            failures = count(failures, wrong, age, self._check)
        return f"{self._name} {wrong}" + (f", {failures} times in a row" if failures > 1 else "")

    async def _due(self) -> None:
        period = PERIOD if self._check.call_regularly else None
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._runner.check_now.wait(), period)
        self._runner.check_now.clear()

    async def _ask(self) -> str:
        """Return what is wrong with the runner, "" when it is well."""
        timeout = self._check.timeout_seconds
        self.answered = False
        try:
            status = await asyncio.wait_for(self._runner.traffic.notify(self._request()), timeout)
        except asyncio.TimeoutError:
            return f"had no answer in timeout_seconds={timeout}"
        self.answered = status > 0
        if not status:
            return "was not accepted"
        return "" if 200 <= status < 400 or status == REFUSED else f"answers {status}"

    def _request(self) -> bytes:
        body = b"{}" if self._check.method == "POST" else b""
        added = [
            (b"host", b"127.0.0.1"),
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
        ]
        if self._runner.direct is None:  # it is no business of a server of the user's own
            added.append((SECRET, self._runner.row.secret.encode()))
        method = (self._check.method or "").encode()
        target = quote(self._check.path, safe="/?&=%:@!$'()*+,;~").encode()
        return request_head(method, target, [], added, keep_authorization=False) + body
