"""Billed seconds over HTTP: per state, over restarts and deletion, with prices; who may ask."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import inside
import pytest
from serving import control, deployed, eventually, start_gateway_again

from fal_notebook import cli, discovery
from fal_notebook.exceptions import DiskFullError, OptionError, SettingError
from fal_notebook.gateway import billing
from fal_notebook.gateway.billing import Billing
from fal_notebook.gateway.store import Billed, RunnerRow, Store
from fal_notebook.handle import Handle

SOURCE = """
import time

def setup():
    time.sleep(0.4)
    return 1

def billed(model, seconds: float = 0) -> float:
    time.sleep(seconds)
    return seconds
"""


@pytest.fixture
def app(own_gateway: Path) -> Iterator[Handle]:
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(SOURCE, names)
    with deployed(SOURCE, keep_alive=300, setup_function=names["setup"]) as handle:
        yield handle


def of_states(app: Handle) -> dict[str, float]:
    """Return the billed seconds of an app by state."""
    return {row["state"]: row["seconds"] for row in app.cost()["billed"]}


def total(app: Handle) -> float:
    return sum(of_states(app).values())


def of_disk(state: Path) -> dict[str, float]:
    """Return the billed seconds that were written."""
    with contextlib.closing(sqlite3.connect(state / "store.db")) as store:
        return dict(store.execute("SELECT state, seconds FROM billed"))


def test_each_state_has_the_seconds_that_runners_were_in_it(app: Handle) -> None:
    begun = time.monotonic()
    assert app(0.5) == 0.5
    took = time.monotonic() - begun
    eventually(lambda: of_states(app).get("RUNNING"))
    states = eventually(lambda: (s := of_states(app)).get("IDLE") and s)
    assert states["SETUP"] >= 0.4
    assert 0 < states["RUNNING"] <= took + 1
    assert set(states) == {"SETUP", "RUNNING", "IDLE"}


def test_a_killed_gateway_loses_no_second_of_a_runner_that_lives(
    app: Handle, own_gateway: Path
) -> None:
    created = app.runners()[0]["created_at"]
    before, seen = total(app), time.monotonic()
    start_gateway_again(own_gateway, eventually)
    eventually(lambda: [r["state"] for r in app.runners()] == ["IDLE"])
    again = time.monotonic()
    after = total(app)
    assert after - before >= again - seen
    assert after <= time.time() - created
    assert app(0) == 0  # it is the same runner
    assert app.runners()[0]["created_at"] == created


def test_what_was_billed_outlives_runners_and_the_app(app: Handle, own_gateway: Path) -> None:
    machine = app.runners()[0]["machine_type"]
    app.delete()
    eventually(lambda: "TERMINATING" in of_states(app))
    written = eventually(lambda: (w := of_disk(own_gateway)) == of_states(app) and w)
    start_gateway_again(own_gateway, eventually)
    rows = app.cost()["billed"]
    assert {row["state"]: row["seconds"] for row in rows} == written
    assert {(r["app"], r["revision"], r["machine_type"]) for r in rows} == {(app.name, 1, machine)}


def test_money_comes_of_prices_that_are_set_and_of_no_others(
    app: Handle, own_gateway: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = own_gateway / "config.toml"
    monkeypatch.setenv("FAL_NOTEBOOK_CONFIG", str(config))
    start_gateway_again(own_gateway, eventually)
    assert {row["money"] for row in app.cost()["billed"]} == {None}
    assert "cost" not in str(cli.run(["cost", "billed"], "%fal")).splitlines()[0]
    config.write_text('[prices]\n"XS" = 36')
    for row in app.cost()["billed"]:
        assert row["money"] == pytest.approx(row["seconds"] * 0.01)
    shown = str(cli.run(["cost"], "%fal", {}))
    assert shown.splitlines()[0].split() == ["app", "machine", "state", "billed", "cost"]
    assert "SETUP" in shown
    config.write_text('[prices]\n"XS" = "cheap"')
    with pytest.raises(Exception, match=r"the price of XS is 'cheap'; write what an hour costs"):
        app.cost()


def test_only_the_owner_is_told(app: Handle, own_gateway: Path) -> None:
    info = discovery.ensure(own_gateway)
    with control(info) as api:
        key = api.post("/api/keys", params={"scope": "API"}).json()["key"]
        assert api.get(f"/api/apps/tester/{app.name}/cost").status_code == 200
        for days in ("0", "-1", "9" * 30, "x"):
            assert api.get("/api/cost", params={"days": days}).status_code == 422
        assert api.get("/api/apps/tester/nothing/cost").status_code == 404
    paths = (
        f"/api/apps/tester/{app.name}/cost",
        "/api/cost",
        f"/api/apps/tester/{app.name}/starts",
    )
    for path in paths:
        for headers in ({}, {"authorization": f"Key {key}"}):
            answer = httpx.get(info.url + path, headers=headers, trust_env=False)
            assert answer.status_code in (401, 403)


@pytest.mark.parametrize("since", ["0d", "soon", "-1", "7h", "1000d"])
def test_a_number_of_days_is_asked_for(since: str) -> None:
    with pytest.raises(OptionError, match=f"--since is '{since}'; write a number of days"):
        cli.run(["cost", "--since", since], "%fal")


class Full(Store):
    full = False

    def add_billed(self, billed: Billed) -> None:
        if self.full:
            raise DiskFullError("no room is left")
        super().add_billed(billed)


async def test_seconds_wait_for_a_disk_that_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Full(tmp_path / "store.db")
    monkeypatch.setattr(billing, "PERIOD", 0.01)
    now = 1000.0
    monkeypatch.setattr("fal_notebook.gateway.clock.now", lambda: now)
    bills = Billing(store)
    revision: Any = type("R", (), {"machine": {"gpus": 2}, "number": 3})
    meter = bills.meter(RunnerRow("r", "o", "a", "rev", "", "s", "GPU"), revision)
    meter.enter("IDLE", now)
    store.full, now = True, 1010.0
    await asyncio.sleep(0.05)
    assert store.select(Billed) == []
    assert [b.seconds for b in bills.rows("o", "", "")] == [20]
    store.full, now = False, 1015.0
    meter.enter("TERMINATED", now)
    while not store.select(Billed):
        await asyncio.sleep(0.01)
    now = 2000.0
    bills.close()  # nothing is written twice
    found = store.select(Billed)
    assert [(b.app, b.revision, b.machine_type, b.state) for b in found] == [
        ("a", 3, "GPU", "IDLE")
    ]
    assert [b.seconds for b in found] == [30]
    assert [b.seconds for b in bills.rows("o", "a", "")] == [30]
    assert bills.rows("o", "b", "") == bills.rows("x", "", "") == []
    assert bills.rows("o", "a", "9999-01-01") == []
    store.forget_billed("9999-01-01")
    assert store.select(Billed) == []
    store.close()


async def test_what_an_ended_runner_was_billed_is_not_long_in_memory_only(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(billing, "PERIOD", 1e6)
    monkeypatch.setattr(billing, "SOON", 0.0)
    now = 1000.0
    monkeypatch.setattr("fal_notebook.gateway.clock.now", lambda: now)
    bills = Billing(store)
    revision: Any = type("R", (), {"machine": {"gpus": 0}, "number": 1})
    for name in ("one", "two"):
        meter = bills.meter(RunnerRow(name, "o", "a", "rev", "", "s", "M"), revision)
        meter.enter("SETUP", now)
    meter.enter("TERMINATED", now + 5)
    now += 7
    bills.ended()
    bills.ended()
    while not (found := store.select(Billed)):
        await asyncio.sleep(0)
    assert [b.seconds for b in found] == [12]
    bills.close()


async def test_the_end_of_a_runner_is_written_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(billing, "PERIOD", 1e6)
    monkeypatch.setattr(billing, "SOON", 0.0)
    gateway = inside.open_gateway(tmp_path)
    fleet = await inside.deployed(gateway, "def f(): return 1", min_concurrency=1)
    gateway.lifecycle.kill(next(iter(fleet.runners.values())), "as asked")
    written = await inside.until(lambda: gateway.store.select(Billed))
    assert {b.state for b in written} >= {"SETUP", "TERMINATING"}
    await inside.close_gateway(gateway)


def test_prices_come_from_the_environment_or_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fal_notebook import settings

    config = tmp_path / "config.toml"
    monkeypatch.setenv("FAL_NOTEBOOK_CONFIG", str(config))
    assert settings.prices() == {}
    config.write_text('[prices]\n"GPU-A100" = 1.99  # per hour\nXS = 0')
    assert settings.prices() == {"GPU-A100": 1.99, "XS": 0.0}
    monkeypatch.setenv("FAL_NOTEBOOK_PRICES", " GPU-A100 = 2, M=0.5,")
    assert settings.prices() == {"GPU-A100": 2.0, "M": 0.5}
    monkeypatch.setenv("FAL_NOTEBOOK_PRICES", "")
    assert settings.prices() == {}


@pytest.mark.parametrize(
    ("variable", "file", "what"),
    [
        ("GPU-A100=dear", "", "FAL_NOTEBOOK_PRICES: the price of GPU-A100 is 'dear'"),
        ("GPU-A100", "", "FAL_NOTEBOOK_PRICES: the price of GPU-A100 is ''"),
        ("=1", "", "the price of a machine type is 1.0"),
        ("M=-1", "", "the price of M is -1.0"),
        ("M=nan", "", "the price of M is nan"),
        ("M=inf", "", "the price of M is inf"),
        (None, "[prices]\nM = true", "config.toml: the price of M is True"),
        (None, "[prices]\nM = '1'", "config.toml: the price of M is '1'"),
        (None, "[prices.M]\nhour = 1", "config.toml: the price of M is {'hour': 1}"),
        (None, "prices = 1.99", "config.toml is 1.99; write a table"),
    ],
)
def test_a_price_that_is_none_is_refused(
    variable: str | None, file: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fal_notebook import settings

    config = tmp_path / "config.toml"
    config.write_text(file)
    monkeypatch.setenv("FAL_NOTEBOOK_CONFIG", str(config))
    if variable is not None:
        monkeypatch.setenv("FAL_NOTEBOOK_PRICES", variable)
    with pytest.raises(SettingError) as refused:
        settings.prices()
    assert what in str(refused.value)
