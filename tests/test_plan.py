"""Pure decisions of a deploy: what is inherited, what is in force, what is up to date."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from fal_notebook.gateway import plan
from fal_notebook.gateway.store import App, Revision
from fal_notebook.machines import Host, MachineType
from fal_notebook.options import explicit, parse_options

SMALL = MachineType("XS", 512, 0.5)


def revision(**options: Any) -> Revision:
    parsed = parse_options(options)
    return Revision(
        id="r",
        owner="o",
        app="a",
        number=1,
        state="ACTIVE",
        digest="d",
        payload="p",
        options=parsed.model_dump(mode="json"),
        explicit=explicit(parsed),
        manifest={},
        machine={},
    )


def app(**scaling: Any) -> App:
    return App("o", "a", "r", "notebook", scaling)


@pytest.mark.parametrize(
    ("before", "scaled", "given", "taken_over"),
    [
        ({}, {}, {}, {}),
        ({"keep_alive": 60}, {}, {}, {"keep_alive": 60}),
        ({"keep_alive": 60}, {"keep_alive": 90}, {}, {"keep_alive": 90}),
        ({"keep_alive": 60}, {}, {"keep_alive": 5}, {}),
        ({"keep_alive": 60}, {"keep_alive": 10}, {}, {}),
        ({"max_multiplexing": 4, "startup_timeout": 9, "machine_type": "L"}, {}, {}, {}),
        ({"regions": ["us-east"]}, {}, {}, {"regions": ["us-east"]}),
        ({"request_timeout": 3}, {"min_concurrency": 1}, {}, "both"),
    ],
)
def test_scaling_is_inherited_unless_given_or_default(before, scaled, given, taken_over) -> None:
    expected = {"min_concurrency": 1, "request_timeout": 3} if taken_over == "both" else taken_over
    assert plan.inherited(given, app(**scaled), revision(**before)) == expected


def test_a_first_deploy_inherits_nothing() -> None:
    assert plan.inherited({}, None, None) == {}


def test_what_scale_changed_is_in_force() -> None:
    options = plan.effective(app(keep_alive=5), revision(keep_alive=60))
    assert options["keep_alive"] == 5


def test_the_same_digest_on_the_same_target_is_up_to_date_and_nothing_else_is() -> None:
    assert plan.up_to_date("d", "local", revision())
    assert not plan.up_to_date("e", "local", revision())
    assert not plan.up_to_date("d", "docker", revision())
    assert not plan.up_to_date("d", "local", None)


@pytest.mark.parametrize(
    ("options", "memory_mb", "most"),
    [
        ({}, 2048, 4),
        ({}, 100, 1),
        ({"max_concurrency": 2}, 100_000, 2),
        ({"min_concurrency": 7}, 1024, 2),
    ],
)
def test_an_unset_maximum_is_what_the_host_holds(options, memory_mb: int, most: int) -> None:
    host = Host(memory_mb=memory_mb, cores=8, gpus=0)
    chosen = plan.scaling(revision(**options).options, SMALL, host)
    assert chosen.max_concurrency == most


def test_a_minimum_that_the_host_does_not_hold_is_told() -> None:
    host = Host(memory_mb=1024, cores=8, gpus=0)
    (told,) = plan.above_host(revision(min_concurrency=3).options, SMALL, host)
    assert told.startswith("min_concurrency=3 is above the 2 of ")
    for options in ({"min_concurrency": 2}, {"min_concurrency": 3, "max_concurrency": 3}):
        assert plan.above_host(revision(**options).options, SMALL, host) == []


@pytest.mark.parametrize(
    ("kind", "given", "expected"),
    [
        ("function", {}, ["keep_alive"]),
        ("function", {"keep_alive": 60}, []),
        ("app", {}, []),  # its own default
    ],
)
def test_inherited_is_what_neither_the_code_nor_a_default_says(
    kind: str, given: dict[str, Any], expected: list[str]
) -> None:
    shown = dataclasses.replace(revision(keep_alive=60), explicit=given, manifest={"kind": kind})
    assert plan.of_earlier(shown) == expected
