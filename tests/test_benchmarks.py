"""Every row of `make bench` can be measured: a quick run with neither nginx nor wrk."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import psutil

RUN = Path(__file__).parent.parent / "benchmarks" / "run.py"
# Differences of two measurements, and a CPU time that may be nothing.
MAY_BE_NOTHING = (
    *("import ", "%load_ext ", "gateway overhead", "idle gateway, CPU"),
    *("SSE, first byte later", "memory more "),
)


def test_a_quick_run_measures_every_row_and_leaves_nothing_running(tmp_path: Path) -> None:
    figures = tmp_path / "results.json"
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    command = [sys.executable, str(RUN), "--quick", "--plain", "--json", str(figures)]
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(figures.read_text())["results"]
    assert len(results) >= 12
    for result in results:
        values = [*result["ours"], *result["peer"]]
        assert all(math.isfinite(value) for value in values), result
        assert result["name"].startswith(MAY_BE_NOTHING) or min(values) > 0, result
        assert result["name"] in done.stdout
    assert [p for p in psutil.process_iter() if _belongs(p, str(tmp_path))] == []


def test_a_difference_of_nothing_is_said_to_be_below_noise() -> None:
    sys.path.insert(0, str(RUN.parent))
    from report import Result

    row = Result("import x", "ms", [0.0, 0.0, 1.0], "json", [0.0], difference=True).cells()
    assert (row[1], row[4], row[5]) == ("below noise", "json: below noise", "")
    assert Result("idle", "%", [0.0]).cells()[1] == "0 %"


def _belongs(process: psutil.Process, folder: str) -> bool:
    try:
        return any(folder in value for value in process.environ().values())
    except psutil.Error:
        return False
