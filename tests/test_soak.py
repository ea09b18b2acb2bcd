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
from growth import judge, slope, step  # noqa: E402

SECONDS = 60


BEGUN, LONG = 200, 400  # what is judged of a series


def series(
    per_second: float = 0,
    noise: float = 0,
    peak: float = 0,
    jump: float = 0,
    at_part: float = 0.4,
    tooth: int = 0,
) -> list[dict[str, float]]:
    draw = random.Random(7)
    return [
        {
            "at": float(at),
            "memory": 70
            + per_second * at
            + draw.uniform(-noise, noise)
            + peak * (at % 40 == 0)
            + jump * (at >= BEGUN + at_part * LONG)
            + (20 * (at % tooth) / tooth if tooth else 0),
        }
        for at in range(BEGUN + LONG)
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
        (series(jump=100), True),
        (series(jump=5, at_part=0.11), True),
        (series(jump=5, at_part=0.89), True),
        (series(jump=10, noise=5), True),
        (series(jump=5, peak=500), True),
        (series(jump=-100), False),
        (series(jump=100, at_part=0.98), False),
        (series(tooth=7), False),
        (series(tooth=45), False),
        (series(tooth=60), False),
        (series(jump=20, tooth=45), True),
    ],
    ids=[
        *["level", "noise", "peaks", "falls", "grows", "grows in noise", "grows between peaks"],
        *["jumps", "jumps early", "jumps late", "jumps in noise", "jumps between peaks"],
        *["drops", "last moment", "narrow teeth", "teeth", "wide teeth", "jumps between teeth"],
    ],
)
def test_only_a_trend_is_growth(samples: list[dict[str, float]], grows: bool) -> None:
    (found,) = judge(samples, {"memory": 4}, warm_up=BEGUN)
    assert found.too_much is grows


def test_what_happens_in_the_warm_up_and_to_who_is_seldom_there_is_not_judged() -> None:
    samples = [{"at": float(at), "files": min(at, 200)} for at in range(600)]
    for sample in samples[:400]:
        sample["runner of rare"] = sample["at"]
    assert [f.grown for f in judge(samples, {"files": 0, "runner": 0}, warm_up=200)] == [0]


def test_who_is_missing_at_first_or_at_last_is_judged() -> None:
    samples = [{"at": float(at)} for at in range(100)]
    for sample in samples[10:90]:
        sample["runner of leaks"] = sample["at"]
    assert [f.grown for f in judge(samples, {"runner": 0}, warm_up=0)] == [79]


def test_a_few_samples_are_no_level() -> None:
    restless = [(float(at), 2.0 * (at >= 36)) for at in range(40)]
    assert step(restless) == 0
    assert step([(at, 2.0 * (at >= 12)) for at, _ in restless]) == 2


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
