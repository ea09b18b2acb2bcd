"""The simulation: what it counts, steady load that never flaps, and a real run beside it."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from click import UsageError
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import deployed, eventually

from fal_notebook import cli, simulation
from fal_notebook.exceptions import OptionError
from fal_notebook.gateway import simulate as simulated
from fal_notebook.gateway.autoscaler import Scaling
from fal_notebook.gateway.simulate import Request, Simulation, Start, simulate
from fal_notebook.handle import Handle

TICK = 1 / 64  # a binary fraction, as all times below, so that what meets in theory meets here


def after(result: Simulation, at: float) -> set[int]:
    """Return how many runners there were from then on."""
    counts = zip(result.at, result.runners, strict=True)
    before = [n for when, n in counts if when < at][-1:]
    return {n for when, n in zip(result.at, result.runners, strict=True) if when >= at} | {*before}


def test_each_request_waits_for_its_runner_and_all_seconds_are_billed_once() -> None:
    trace = [Request(0, 2), Request(1, 2), Request(60, 1)]
    result = simulate(trace, Scaling(max_concurrency=2, keep_alive=10), Start(1, 3), TICK)
    # The third start is too late for the second request, which follows the first on its runner.
    assert list(result.waits) == [4, 4, 4]
    assert (result.started, result.cold_starts, result.unserved) == (3, 3, 0)
    assert result.billed == {"SETUP": 9, "RUNNING": 5, "IDLE": 30}
    assert max(result.runners) == 2
    assert result.runners[-1] == result.in_flight[-1] == result.queued[-1] == 0


def test_seconds_of_a_runner_are_billed_for_each_of_its_gpus() -> None:
    scaling = Scaling(max_concurrency=2, keep_alive=10)
    billed = simulate([Request(0, 2)], scaling, Start(1, 3), TICK, gpus=4).billed
    assert billed == {"SETUP": 12, "RUNNING": 8, "IDLE": 40}


def test_runners_of_the_minimum_are_ready_when_the_trace_begins() -> None:
    result = simulate([Request(5, 1)], Scaling(min_concurrency=2, max_concurrency=3), Start(), TICK)
    assert (list(result.waits), result.cold_starts) == ([0], 0)
    assert set(result.runners) == {2}


def test_the_oldest_of_the_least_loaded_serves_so_that_the_others_may_go() -> None:
    burst = [Request(0, 1)] * 4
    steady = [Request(10 + n, 0.5) for n in range(40)]
    result = simulate(burst + steady, Scaling(max_concurrency=4, keep_alive=5), Start(), TICK)
    assert max(result.runners) == 4
    assert after(result, 30) == {1, 0}


def test_requests_within_scaling_delay_start_nothing() -> None:
    scaling = Scaling(min_concurrency=1, max_concurrency=5, scaling_delay=3)
    peak = [Request(1, 1)] * 3
    assert simulate(peak, scaling, Start(), TICK).started == 1
    assert simulate([*peak, *[Request(1, 1)] * 2], scaling, Start(), TICK).started == 2


def test_what_no_runner_takes_up_is_counted() -> None:
    result = simulate([Request(0, 1)], Scaling(max_concurrency=0))
    assert (result.unserved, len(result.waits)) == (1, 0)


def test_nothing_comes_of_no_requests() -> None:
    assert set(simulate([], Scaling(max_concurrency=3)).runners) == {0}


@pytest.mark.parametrize("wrong", [(math.nan, 1), (math.inf, 1), (0, math.nan), (0, -1)])
def test_a_request_of_what_is_no_number_is_refused(wrong: tuple[float, float]) -> None:
    for trace in ([Request(*wrong)], [Request(0, 1), Request(*wrong)]):
        with pytest.raises(ValueError, match=r"not in order|works for"):
            simulate(trace, Scaling())


def test_a_first_line_may_name_the_duration_first(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    for text in ("arrival,duration\n1,2\n", "Duration,arrival\n2,1\n", "1,2\n"):
        trace.write_text(text)
        assert simulation.read(str(trace)) == [Request(1, 2)]


@pytest.mark.parametrize("wrong", [{"tick": 0}, {"tick": -1.0}, {"start": Start(-1, 1)}])
def test_a_tick_or_start_that_is_none_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="give seconds from 0 on for a start, and more for a tick"):
        simulate([Request(0, 1)], Scaling(), **wrong)


def test_a_trace_that_goes_back_in_time_is_refused() -> None:
    with pytest.raises(ValueError, match=r"0\.5 s comes after 1 s"):
        simulate([Request(1, 1), Request(0.5, 1)], Scaling())


class Asking(simulated._World):
    """Has the autoscaler asked at every tick, also when it would change nothing."""

    def _decide(self) -> float | None:
        queued, next_due_at = self._waiting()
        return self._obey(queued, next_due_at)


@settings(deadline=None, max_examples=100)
@given(
    gaps=st.lists(st.floats(0, 15), max_size=40),
    length=st.floats(0, 12),
    start=st.builds(Start, st.floats(0, 2), st.floats(0, 4)),
    scaling=st.builds(
        Scaling,
        min_concurrency=st.integers(0, 3),
        max_concurrency=st.integers(0, 6),
        max_multiplexing=st.integers(1, 3),
        concurrency_buffer=st.integers(0, 2),
        concurrency_buffer_perc=st.integers(0, 100),
        scaling_delay=st.integers(0, 2),
        keep_alive=st.integers(0, 20),
    ),
)
def test_what_is_not_asked_would_have_changed_nothing(
    gaps: list[float], length: float, start: Start, scaling: Scaling
) -> None:
    trace = [Request(at, length * (n % 3)) for n, at in enumerate(accumulate(gaps))]
    seen = simulate(trace, scaling, start, TICK)
    asked = Asking(scaling, start, TICK, 0).run(iter(trace))
    assert (seen.waits, seen.started, seen.cold_starts) == (
        asked.waits,
        asked.started,
        asked.cold_starts,
    )
    assert seen.billed == pytest.approx(asked.billed)


@settings(deadline=None, max_examples=60)
@given(
    streams=st.integers(1, 12),
    length=st.integers(1, 6 * 64).map(lambda n: n / 64),
    pause=st.just(0.0) | st.integers(1, 40 * 64).map(lambda n: n / 64),
    start=st.builds(Start, st.integers(0, 64).map(lambda n: n / 64), st.integers(0, 5)),
    scaling=st.builds(
        Scaling,
        min_concurrency=st.integers(0, 4),
        max_concurrency=st.integers(1, 16),
        max_multiplexing=st.integers(1, 4),
        concurrency_buffer=st.integers(0, 3),
        concurrency_buffer_perc=st.integers(0, 100),
        scaling_delay=st.integers(0, 3),
        keep_alive=st.integers(0, 20),
    ),
)
def test_a_steady_load_never_flaps(
    streams: int, length: float, pause: float, start: Start, scaling: Scaling
) -> None:
    if pause:  # shorter than keep_alive
        scaling = replace(scaling, keep_alive=scaling.keep_alive + pause + TICK)
    period = length + pause
    settled = 60 + 20 * (sum(start) + period + scaling.scaling_delay)
    times = [n * period for n in range(int(2 * settled / period))]
    trace = [Request(at, length) for at in times for _ in range(streams)]
    result = simulate(trace, scaling, start, TICK)
    end = times[-1]
    seen = {n for at, n in zip(result.at, result.runners, strict=True) if settled < at < end}
    assert len(seen) == 1, "the load does not change, and the runners do"


SLOW = "import time\ndef slow(x: float) -> float:\n    time.sleep(x)\n    return x\n"


@pytest.mark.parametrize(
    "options",
    [
        {"max_concurrency": 3, "keep_alive": 1},
        {"max_concurrency": 4, "max_multiplexing": 2, "keep_alive": 1},
        {"max_concurrency": 3, "min_concurrency": 1, "keep_alive": 1, "concurrency_buffer": 2},
    ],
    ids=json.dumps,
)
def test_a_real_run_does_what_was_predicted(options: dict[str, int]) -> None:
    calls, length = 6, 1.0
    with deployed(SLOW, **options) as slow, ThreadPoolExecutor(calls) as pool:
        floor = max(options.get("min_concurrency", 0), options.get("concurrency_buffer", 0))
        eventually(lambda: len(slow.runners()) == floor)
        together = Barrier(calls)
        list(pool.map(lambda _: (together.wait() and None) or slow(length), range(calls)))
        eventually(lambda: len(slow.runners()) == floor)
        real = max(sample["runners"] for sample in slow.timeline())
    burst = [Request(0, length)] * calls
    predicted = simulate(burst, Scaling(**options), Start(0.05, 0.05), tick=0.01)
    assert real == max(predicted.runners)


def test_a_start_takes_what_the_apps_last_starts_did_also_at_zero(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("0,1\n")
    with deployed(SLOW, keep_alive=0, scaling_delay=2) as slow:
        for _ in range(2):
            eventually(lambda: not slow.runners())
            slow(0)
        eventually(lambda: not slow.runners())
        known = slow.starts()
        took, number = known["median"], len(known["starts"])
        shown = simulated("slow", "--trace", str(trace))
    assert number == 3
    assert took["queued"] > 1.9  # scaling_delay, which is simulated and is no part of a start
    seconds = took["start"] + took["setup"]
    assert f"a start takes {seconds:.2f} s, the median of its last {number}\n" in shown


def test_without_a_known_start_one_is_assumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("0,1\n")
    with deployed(SLOW) as slow:
        unknown = dict.fromkeys(slow.starts()["median"])
        monkeypatch.setattr(Handle, "starts", lambda _: {"starts": [], "median": unknown})
        shown = simulated("slow", "--trace", str(trace))
    assert "a start takes 1.00 s, assumed: no runner of the app has come up yet\n" in shown


TRACE = "arrival,duration\n" + "".join(f"{n * 0.5},2\n" for n in range(120))


def simulated(*arguments: str) -> str:
    return str(cli.run(["simulate", *arguments], "fal-notebook"))


def test_the_command_plots_an_apps_scaling_and_another_one(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text(TRACE)
    with deployed(SLOW, max_concurrency=2, keep_alive=7):
        shown = simulated("slow", "--trace", str(trace))
        assert "max_concurrency=2, " in shown
        assert "keep_alive=7; a start takes " in shown
        assert "s, as its only one did\n" in shown
        assert "requests 120: waited " in shown
        assert "runners started 2; billed SETUP " in shown
        assert " runners ████" in shown.replace("▂", "█")
        other = cli.run(
            ["simulate", "slow", "--trace", str(trace), "--start=3", "max_concurrency=9"], "%fal"
        )
        assert "a start takes 3.00 s, given\n" in repr(other)
        held = simulated("slow", "--trace", str(trace), "max_concurrency=none")
        assert "max_concurrency=0" not in held
        assert "never served" not in held
        assert other._repr_html_().count("<svg") == 3


@pytest.mark.parametrize(
    ("text", "arguments", "said"),
    [
        (None, [], "cannot read the trace"),
        ("", [], "has no requests; each line is ARRIVAL,DURATION"),
        ("0,1\n1,x\n", [], "line 2 of the trace .* is '1,x'; each line"),
        ("1e308,1\n", [], "line 1 of the trace .* is '1e308,1'; each line .* to 1e12"),
        ("0,-1\n", [], "line 1 of the trace .* is '0,-1'"),
        ("0,1\n", ["max_concurency=3"], "did you mean 'max_concurrency'"),
        ("0,1\n", ["max_concurrency=x"], "max_concurrency='x' is not allowed"),
        ("0,1\n", ["--start=-1"], "-1.0 is not in the range"),
        ("0,1\n", ["--start=inf"], "inf is not in the range"),
        ("0,1\n", ["--start=nan"], "^nan is no amount; give a number"),
    ],
)
def test_a_trace_or_option_that_is_none_is_refused(
    tmp_path: Path, text: str | None, arguments: list[str], said: str
) -> None:
    trace = tmp_path / "trace.csv"
    if text is not None:
        trace.write_text(text)
    with deployed(SLOW), pytest.raises((OptionError, UsageError), match=said):
        simulated("slow", "--trace", str(trace), *arguments)


def test_many_requests_on_one_runner_cost_no_more() -> None:
    steady = (Request(i * 0.001, 9.0) for i in range(30_000))
    result = simulate(steady, Scaling(max_multiplexing=1_000_000_000, max_concurrency=10))
    assert (result.started, len(result.waits), result.unserved) == (1, 30_000, 0)


@pytest.mark.parametrize("wrong", [Request(1e308, 1.0), Request(0.0, 1e308)])
def test_times_beyond_all_use_are_refused(wrong: Request) -> None:
    with pytest.raises(ValueError, match=r"not in order|works for"):
        simulate([wrong], Scaling())
