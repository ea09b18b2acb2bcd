"""Every option has a test of what it does, which was seen to fail without it."""

from __future__ import annotations

import pytest
from effects import NOT_RUN, PASSED, given, marked, recorded

from fal_notebook.options import CellOptions, Options

# The record may have been written where there is no engine.
NEEDS_DOCKER = {"image"}


def test_every_option_has_a_test_of_what_it_does() -> None:
    assert marked().keys() == {*Options.model_fields, *CellOptions.model_fields}


def test_every_such_test_was_run_without_its_option() -> None:
    rows = {(option, test) for option, tests in marked().items() for test in tests}
    assert recorded().keys() == rows, "run: make options"
    not_run = {option for (option, _), said in recorded().items() if said == NOT_RUN}
    assert not_run <= NEEDS_DOCKER


def test_every_such_test_failed() -> None:
    told = {key: said for key, said in recorded().items() if said.startswith((PASSED, "ERROR"))}
    assert told == {}


def test_what_is_given_lacks_the_option_that_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WITHOUT_OPTION", "keep_alive")
    assert given(keep_alive=1, auth="public") == {"auth": "public"}
