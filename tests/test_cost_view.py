"""How costs and cold starts look in text."""

from __future__ import annotations

from typing import Any

from fal_notebook.cost_view import cost_table, starts_table


def billed(machine: str, state: str, money: float | None, revision: int | None = None) -> Any:
    about = {"app": "digits", "revision": revision, "machine_type": machine, "state": state}
    return {**about, "seconds": 90.0, "money": money}


def shown(rows: list[Any]) -> list[list[str]]:
    text = repr(cost_table({"since": "2026-01-01", "billed": rows}))
    return [line.split() for line in text.splitlines()]


def test_without_prices_there_is_no_money() -> None:
    rows = shown([billed("M", "IDLE", None), billed("M", "SETUP", None)])
    assert rows[0] == ["app", "machine", "state", "billed"]
    assert rows[1] == ["digits", "M", "IDLE", "90.0", "s"]
    assert rows[-1] == ["all", "since", "2026-01-01", "180.0", "s"]


def test_the_sum_says_of_what_it_has_no_price() -> None:
    rows = shown([billed("M", "IDLE", 0.5, 1), billed("XL", "IDLE", None, 2)])
    assert rows[0] == ["app", "revision", "machine", "state", "billed", "cost"]
    assert rows[1][-1] == "0.5000"
    assert rows[2][-2:] == ["no", "price"]
    assert rows[3] == ["all", "since", "2026-01-01", "180.0", "s", "0.5000", "without", "XL"]


def test_nothing_billed_is_said() -> None:
    table = cost_table({"since": "2026-01-01", "billed": []})
    assert repr(table) == "nothing was billed since 2026-01-01 (UTC): no runner was up"


def test_the_median_of_whole_starts_is_no_sum_of_medians() -> None:
    about = {"at": 0.0, "revision": 1, "machine_type": "M", "queued": 0.0, "build": 0.0}
    one = {**about, "runner": "r1", "start": 1.0, "setup": 9.0, "first_byte": None}
    two = {**about, "runner": "r2", "start": 1.0, "setup": 9.0, "first_byte": 2.0}
    medians = {"queued": 0.0, "build": 0.0, "start": 1.0, "setup": 9.0, "first_byte": 2.0}
    text = repr(starts_table({"starts": [one, two], "median": medians}))
    last = text.splitlines()[-1].split()
    assert last[0] == "median"
    assert last[-4:] == ["2.000", "s", "11.000", "s"]
    none = {"starts": [], "median": {}}
    assert repr(starts_table(none)) == "no runner of the app has come up yet"
