"""What is shown: escaped in HTML, aligned in text, complete in both."""

from __future__ import annotations

import time

import pytest

from fal_notebook.deploy_progress import Progress
from fal_notebook.display import (
    DeployView,
    Table,
    captured_table,
    log_line,
    runners_table,
    status_table,
)
from fal_notebook.payload import Payload, capture

EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def payload() -> Payload:
    return capture(len)


def progress(payload: Payload) -> Progress:
    return Progress("me", "app", payload, url="http://h/run/me/app", number=3)


def test_text_of_users_is_escaped_in_html(payload) -> None:
    shown = progress(payload)
    shown.notices.append(EVIL)
    shown.inherited = {"regions": EVIL}
    shown.step({"step": "building", "message": EVIL})
    assert EVIL not in DeployView(shown)._repr_html_()
    shown.ended(EVIL, [EVIL])
    assert EVIL not in DeployView(shown)._repr_html_()
    assert EVIL not in Table((EVIL,), [(EVIL,)], EVIL)._repr_html_()
    assert EVIL not in Table((EVIL,), [], EVIL)._repr_html_()
    assert repr(DeployView(shown)).count(EVIL) == 4


def test_a_deploy_shows_its_steps_until_it_has_ended(payload) -> None:
    shown = progress(payload)
    shown.state = "deploying"
    shown.step({"step": "building", "message": "numpy"})
    for view in (repr(DeployView(shown)), DeployView(shown)._repr_html_()):
        assert "building: numpy" in view
    shown.step({"step": "active", "message": "url"})
    for view in (repr(DeployView(shown)), DeployView(shown)._repr_html_()):
        assert "building: numpy" not in view
        assert "active" in view
        assert "revision 3" in view


def test_a_failed_deploy_shows_the_last_lines_of_its_log(payload) -> None:
    shown = progress(payload)
    shown.ended("boom", [f"line {number}" for number in range(100)])
    assert "line 99" in repr(DeployView(shown))
    assert "line 5\n" not in repr(DeployView(shown))


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    table = Table(("a", "b"), [("long cell", 1), ("x", 2)], "")
    assert repr(table).splitlines() == ["a          b", "long cell  1", "x          2"]


def test_empty_tables_say_what_is_missing() -> None:
    assert repr(runners_table([])) == "no runners: the app is scaled to zero"


@pytest.mark.parametrize(("seconds", "when"), [(12.4, "in 12 s"), (-1.0, "with the next request")])
def test_a_crash_backoff_is_said_with_its_cause_and_the_next_try(seconds: float, when: str) -> None:
    app = {"next_try_at": time.time() + seconds, "last_error": "ValueError: no weights"}
    said = f"no runners: CRASH_BACKOFF, next try {when}: ValueError: no weights"
    assert repr(runners_table([], app)) == said
    up = {"next_try_at": None, "last_error": ""}
    assert repr(runners_table([], up)) == "no runners: the app is scaled to zero"


def test_captured_values_are_listed_with_kind_and_size() -> None:
    table = repr(captured_table(capture(progress)))
    assert "progress" in table.splitlines()[1]


def test_a_log_line_without_time_and_request_is_aligned_with_others() -> None:
    line = {"at": None, "runner": "abcdef123", "request": None, "level": "INFO", "message": "m"}
    assert log_line(line) == f"{'':8} abcdef INFO  m"


def test_a_log_line_has_the_end_of_its_requests_id_and_a_date_that_is_not_todays() -> None:
    line = {"runner": "abcdef123", "request": "0" * 24 + "random78", "level": "INFO"}
    at = time.mktime((2020, 2, 3, 4, 5, 6, 0, 0, -1))
    old = log_line({**line, "at": at, "message": "m"})
    assert old == "2020-02-03 04:05:06 abcdef random78 INFO  m"
    assert len(log_line({**line, "at": time.time(), "message": "m"}).split()[0]) == 8


def test_a_failed_deploy_without_a_log_shows_none(payload) -> None:
    shown = progress(payload)
    shown.ended("boom", [""])
    assert "|" not in repr(DeployView(shown))
    assert "<pre>" not in DeployView(shown)._repr_html_()


def test_a_cancelled_deploy_is_not_called_failed(payload) -> None:
    shown = progress(payload)
    shown.step({"step": "failed", "message": "another took its place", "cancelled": True})
    assert "app: cancelled (revision 3)" in repr(DeployView(shown))
    assert "another took its place" in repr(DeployView(shown))


STATUS = {
    "owner": "me",
    "notices": ["min_concurrency=3 is above the 2 that this machine holds"],
    "name": "app",
    "url": "u",
    "env": "main",
    "number": 1,
    "revision": "r",
    "step": "",
    "runners": 0,
    "in_flight": 0,
    "queued": 0,
    "deploying": None,
    "crash_backoff": True,
    "machine": {"name": "S", "memory_mb": 1, "cores": 1},
    "scaled": {},
    "last_error": "e" * 300,
    "callers": [],
    "options": {"image": "x" * 500, "keep_alive": 1},
    "explicit": {"image": "x" * 500},
}


@pytest.mark.parametrize(
    ("holder", "origin"),
    [
        ("notebook /a.ipynb", "cell"),
        ("a session in /a", "cell"),
        ("a program in /a", "program"),
        ("project /a/pyproject.toml", "pyproject"),
    ],
)
def test_a_status_says_where_a_value_is_from_and_cuts_long_ones_in_text(
    holder: str, origin: str
) -> None:
    table = status_table({**STATUS, "notebook": holder})
    lines = {line.split()[0]: line for line in repr(table).splitlines()[1:]}
    assert lines["image"].endswith(f"…  {origin}")
    assert len(lines["image"]) < 140
    assert lines["last"].endswith("e" * 300)
    assert "min_concurrency=3 is above" in lines["note"]
    assert "x" * 500 in table._repr_html_()


def called(*users: str) -> str:
    at = time.mktime((2020, 2, 3, 4, 5, 6, 0, 0, -1))
    callers = [{"user": u, "requests": 3, "first_at": 0.0, "last_at": at} for u in users]
    table = status_table({**STATUS, "notebook": "notebook /a.ipynb", "callers": callers})
    assert EVIL not in table._repr_html_()
    rows = [line for line in repr(table).splitlines() if line.startswith("called by")]
    return rows[0].removeprefix("called by").strip() if rows else ""


def test_a_status_says_who_called() -> None:
    assert called() == ""
    last = "3 (last 2020-02-03 04:05:06)"
    assert called("bob", "") == f"bob {last}, without a key {last}"
    assert called(EVIL) == f"{EVIL} {last}"
    assert called(*"abcde").count("last") == 5
    assert called(*"abcdefg").endswith(f"e {last} and 2 more")


def test_a_failure_is_not_told_before_it_is_explained(payload) -> None:
    told: list[str] = []
    shown = progress(payload)
    shown.on_change = lambda: told.append(shown.error)
    shown.step({"step": "failed", "message": "no model"})
    assert (shown.state, shown.error, told) == ("failed", "no model", [])
