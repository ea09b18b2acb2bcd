"""Runners that leak or freeze: they alone are ended, the cause says why, and others go on."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from gateway_processes import processes_of
from serving import ACT, cause_of_end, deployed, eventually, run_url

from fal_notebook import discovery
from fal_notebook.discovery import GatewayInfo

LEAKS = """
import os
def leaks(much: bool = False) -> int:
    kept = []
    while much:
        kept.append(b"x" * 4_000_000)
    return int(open("/proc/self/oom_score_adj").read())
"""
MEMORY = 300_000_000
V1, V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")


@pytest.fixture
def cramped(own_gateway: Path) -> Iterator[Path]:
    """A state folder; all that runs on it has little memory, once it is put there."""
    v1 = (V1 / "memory.limit_in_bytes").exists()
    group = (V1 if v1 else V2) / "fal-notebook-test"
    try:
        group.mkdir()
        limit = "memory.limit_in_bytes" if v1 else "memory.max"
        (group / limit).write_text(str(MEMORY))
    except OSError:
        pytest.skip("memory cannot be limited here: that takes root and a writable cgroup")
    yield own_gateway
    with contextlib.suppress(OSError):
        for line in (group / "cgroup.procs").read_text().split():
            (group.parent / "cgroup.procs").write_text(line)
        group.rmdir()


def test_a_runner_that_leaks_is_ended_and_nothing_else(cramped: Path) -> None:
    gateway = discovery.ensure(cramped)
    with (
        deployed(LEAKS, serve=True, auth="public", max_concurrency=1) as leaks,
        deployed(ACT, serve=True, auth="public", min_concurrency=1) as act,
    ):
        assert leaks() == 500
        group = next(g for g in (V1, V2) if (g / "fal-notebook-test").exists())
        for process in processes_of(cramped):
            (group / "fal-notebook-test" / "cgroup.procs").write_text(str(process.pid))
        answer = httpx.post(run_url(gateway, leaks), json={"much": True}, timeout=60)
        assert answer.status_code == 503
        eventually(lambda: "for want of memory" in cause_of_end(cramped, "leaks"))
        assert act(do="echo", n=2) == 2
        assert discovery.ensure(cramped).pid == gateway.pid
        assert leaks() == 500  # by another runner


def test_a_frozen_runner_is_ended_with_its_request_and_nothing_else(
    gateway: GatewayInfo, private_state: Path
) -> None:
    with deployed(ACT, serve=True, auth="public", request_timeout=1, max_concurrency=1) as act:
        frozen = act(do="pid")
        os.kill(frozen, signal.SIGSTOP)
        answer = httpx.post(run_url(gateway, act), json={"n": 1}, timeout=30)
        assert (answer.status_code, answer.headers["x-fal-error-type"]) == (504, "request_timeout")
        assert httpx.post(run_url(gateway, act), json={"n": 2}, timeout=30).json() == 2
        eventually(lambda: "request_timeout" in cause_of_end(private_state, "act"))
        eventually(lambda: not Path(f"/proc/{frozen}").exists())
