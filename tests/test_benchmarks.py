"""Every row of `make bench` can be measured: a quick run with neither nginx nor wrk."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

RUN = Path(__file__).parent.parent / "benchmarks" / "run.py"
sys.path.insert(0, str(RUN.parent))
from report import Result  # noqa: E402

# Differences of two measurements, and a CPU time that may be nothing.
MAY_BE_NOTHING = (
    *("import ", "%load_ext ", "gateway overhead", "idle gateway, CPU"),
    *("SSE, first byte later", "memory more "),
)


def test_a_quick_run_measures_every_row_and_leaves_nothing_running(tmp_path: Path) -> None:
    figures = tmp_path / "results.json"
    environment = os.environ | {"TMPDIR": str(tmp_path), "DOCKER_HOST": f"unix://{tmp_path}/none"}
    command = [sys.executable, str(RUN), "--quick", "--plain", "--json", str(figures)]
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "docker: skipped, there is no engine" in done.stderr
    results = json.loads(figures.read_text())["results"]
    assert len(results) >= 12
    for result in results:
        values = [*result["ours"], *result["peer"]]
        assert all(math.isfinite(value) for value in values), result
        assert result["name"].startswith(MAY_BE_NOTHING) or min(values) > 0, result
        assert result["name"] in done.stdout
    assert [p for p in psutil.process_iter() if _belongs(p, str(tmp_path))] == []


def test_an_interrupted_run_says_one_line_and_no_child_a_traceback(
    tmp_path: Path, eventually: Any
) -> None:
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    command = [sys.executable, str(RUN), "cell", "--json", str(tmp_path / "results.json")]
    run = subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        children = psutil.Process(run.pid).children
        eventually(lambda: any("bare_app.py" in _command(child) for child in children()))
        os.killpg(run.pid, signal.SIGINT)  # as ^C in a terminal does
        said = run.communicate(timeout=60)[1]
    finally:
        run.terminate()
    assert (said, run.returncode) == ("\nInterrupted; nothing is left running.\n", 130)


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def test_a_difference_of_nothing_is_said_to_be_below_noise() -> None:
    row = Result("import x", "ms", [0.0, 0.0, 1.0], "json", [0.0], difference=True).cells()
    assert (row[1], row[4], row[5]) == ("below noise", "json: below noise", "not measurable")
    assert Result("idle", "%", [0.0]).cells()[1] == "0 %"


def test_a_peer_or_a_figure_below_zero_gives_no_ratio() -> None:
    overhead = partial(Result, "overhead", "ms", peer_name="nginx", difference=True)
    row = overhead(ours=[0.1, 0.2], peer=[-0.02, 0.006]).cells()
    assert (row[1], row[4], row[5]) == ("0.15 ms", "nginx: below noise", "not measurable")
    row = overhead(ours=[-0.1], peer=[0.02]).cells()
    assert (row[1], row[5]) == ("below noise", "not measurable")
    assert overhead(ours=[0.1, 0.2, 0.3], peer=[-0.02, 0.1, 0.1]).ratio == pytest.approx(2.5)
    assert Result("no peer", "ms", [1.0]).cells()[5] == ""


def _belongs(process: psutil.Process, folder: str) -> bool:
    try:
        return any(folder in value for value in process.environ().values())
    except psutil.Error:
        return False
