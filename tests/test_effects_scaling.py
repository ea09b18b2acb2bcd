"""What each option does to the number of runners and their life, with real runners over HTTP."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from effects import effect_of, given
from serving import ACT, defined, deployed, events, eventually

from fal_notebook.exceptions import DeployError
from fal_notebook.handle import Handle


def most_runners(handle: Handle) -> int:
    return max(sample["runners"] for sample in handle.timeline())


def together(handle: Handle, *arguments: dict[str, Any]) -> list[Any]:
    """Call at once with each of the arguments."""
    with ThreadPoolExecutor(len(arguments)) as pool:
        return list(pool.map(lambda values: handle(**values), arguments))


SLEEP = {"do": "sleep", "n": 1}


@effect_of("machine_type")
def test_the_first_machine_that_this_host_has_is_taken() -> None:
    with deployed(ACT, **given(machine_type=["GPU-B200", "M"])) as act:
        assert act.runners()[0]["machine_type"] == "M"


@effect_of("keep_alive")
def test_an_idle_runner_goes_after_keep_alive() -> None:
    with deployed(ACT, **given(keep_alive=0)) as act:
        act(do="pid")
        eventually(lambda: act.runners() == [], timeout=5)


@effect_of("min_concurrency")
def test_as_many_runners_stay() -> None:
    with deployed(ACT, **given(min_concurrency=2)) as act:
        eventually(lambda: [r["state"] for r in act.runners()] == ["IDLE"] * 2)


@effect_of("max_concurrency")
def test_there_are_never_more_runners() -> None:
    with deployed(ACT, **given(max_concurrency=1)) as act:
        together(act, SLEEP, SLEEP, SLEEP)
        assert most_runners(act) == 1


@effect_of("max_multiplexing")
def test_a_runner_works_on_several_requests() -> None:
    with deployed(ACT, **given(max_multiplexing=3), max_concurrency=1) as act:
        together(act, SLEEP, SLEEP, SLEEP)
        assert max(sample["in_flight"] for sample in act.timeline()) == 3


@effect_of("concurrency_buffer")
def test_a_buffer_stays_above_the_load() -> None:
    with deployed(ACT, **given(concurrency_buffer=2), max_concurrency=9) as act:
        act(**SLEEP)
        assert most_runners(act) == 3


@effect_of("concurrency_buffer_perc")
def test_a_buffer_grows_with_the_load() -> None:
    with deployed(ACT, **given(concurrency_buffer_perc=100), max_concurrency=9) as act:
        together(act, SLEEP, SLEEP)
        assert most_runners(act) == 4


@effect_of("scaling_delay")
def test_a_request_waits_before_it_starts_a_runner() -> None:
    with deployed(ACT, **given(scaling_delay=60), max_concurrency=9) as act:
        together(act, SLEEP, SLEEP)
        assert most_runners(act) == 1


@effect_of("app_scale_settings")
def test_scaling_comes_from_the_code_again() -> None:
    with (
        deployed(ACT, keep_alive=33) as act,
        deployed(ACT + "\n# changed", **given(app_scale_settings=True)),
    ):
        assert act.status()["options"]["keep_alive"] == 10


@effect_of("regions")
def test_runners_are_spread_over_the_regions() -> None:
    source = "import os\ndef where() -> str:\n    return os.environ['FAL_REGION']"
    with deployed(source, **given(regions=["eu-north", "us-east"]), min_concurrency=2) as where:
        eventually(lambda: len(where.runners()) == 2)
        assert {runner["region"] for runner in where.runners()} == {"eu-north", "us-east"}
        assert where() in ("eu-north", "us-east")
        where.scale(regions=["eu-west"], min_concurrency=3)
        eventually(lambda: [runner["region"] for runner in where.runners()] == ["eu-west"] * 3)
        assert where() == "eu-west"


@effect_of("deployment_strategy")
def test_recreate_ends_the_old_runners_before_new_ones_start(private_state: Path) -> None:
    with deployed(ACT, min_concurrency=1) as act:
        before = act.runners()[0]["id"]
        with deployed(ACT + "\n# changed", **given(deployment_strategy="recreate")):
            now = act.runners()[0]["id"]
            told = [(e["runner"], e["state"]) for e in events(private_state, "act", "runner")]
    assert told.index((before, "TERMINATED")) < told.index((now, "PENDING"))


def test_a_recreate_that_fails_brings_the_old_revision_back() -> None:
    broken = defined("def broken(): raise ValueError('broken')\n")
    with deployed(ACT, min_concurrency=1) as act:
        with (
            pytest.raises(DeployError, match="broken"),
            deployed(ACT, deployment_strategy="recreate", setup_function=broken),
        ):
            pass
        assert act(do="echo", n=3) == 3
