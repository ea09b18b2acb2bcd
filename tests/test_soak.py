"""The soak test's own judgement, and a minute of it: nothing grows under mixed load."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from gateway_processes import processes_of
from hypothesis import given
from hypothesis import strategies as st

SOAK = Path(__file__).parent.parent / "benchmarks" / "soak.py"
sys.path.insert(0, str(SOAK.parent))
from growth import judge, slope  # noqa: E402

SECONDS = 60


def series(per_second: float, noise: float = 0.0, peak: float = 0.0) -> list[dict[str, float]]:
    draw = random.Random(7)
    return [
        {
            "at": float(at),
            "memory": 70 + per_second * at + draw.uniform(-noise, noise) + peak * (at % 40 == 0),
        }
        for at in range(600)
    ]


@pytest.mark.parametrize(
    ("samples", "grows"),
    [
        (series(0), False),
        (series(0, noise=5), False),
        (series(0, peak=500), False),
        (series(-0.05), False),
        (series(0.02), True),
        (series(0.02, noise=5), True),
        (series(0.02, peak=500), True),
    ],
    ids=["level", "noise", "peaks", "falls", "grows", "grows in noise", "grows between peaks"],
)
def test_only_a_trend_is_growth(samples: list[dict[str, float]], grows: bool) -> None:
    (found,) = judge(samples, {"memory": 4}, warm_up=200)
    assert found.too_much is grows


def test_what_happens_in_the_warm_up_and_to_who_has_ended_is_not_judged() -> None:
    samples = [{"at": float(at), "files": min(at, 200)} for at in range(600)]
    for sample in samples[:400]:
        sample["runner 1"] = sample["at"]
    assert [f.grown for f in judge(samples, {"files": 0, "runner": 0}, warm_up=200)] == [0]


@given(st.floats(-5, 5), st.floats(-1e3, 1e3), st.integers(3, 900))
def test_the_slope_of_a_line_is_its_own(steep: float, begin: float, number: int) -> None:
    points = [(float(at), begin + steep * at) for at in range(number)]
    assert slope(points) == pytest.approx(steep, abs=1e-6)


@pytest.mark.timeout(240)
def test_a_minute_of_mixed_load_answers_all_and_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, str(SOAK), "--seconds", str(SECONDS)]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=220
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 wrong answers; grown: nothing" in done.stdout
    assert processes_of(tmp_path) == []
