"""The gateway as a process: alone on its state, replaceable without loss, gone without a trace."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from cryptography.fernet import Fernet
from gateway_processes import WHO, deploy, end, other_gateway, processes_of, stop
from serving import Wire, control, fill, post, with_key

from fal_notebook import discovery
from fal_notebook.discovery import GatewayInfo
from fal_notebook.gateway.__main__ import house_period
from fal_notebook.gateway.gateway import sockets_folder
from fal_notebook.gateway.store import App, Revision, RunnerRow, Store


def who(gateway: GatewayInfo, **headers: str) -> Any:
    url = f"{gateway.url}/run/tester/who"
    return httpx.post(url, json={}, headers=headers, timeout=20).json()


def test_there_is_one_gateway_on_a_state_folder(state: Path) -> None:
    gateway = discovery.ensure(state)
    second = other_gateway(state)
    assert second.returncode == 1
    assert second.stderr.startswith("a gateway already runs on ")
    assert second.stderr.count("\n") == 1
    assert discovery.ensure(state) == gateway


def test_a_second_gateway_is_refused_whatever_files_were_removed(state: Path) -> None:
    gateway = discovery.ensure(state)
    for lock in state.glob("*.lock"):
        lock.unlink()
    second = other_gateway(state)
    assert (second.returncode, "already runs" in second.stderr) == (1, True)
    assert discovery.ensure(state) == gateway


def test_a_gateway_whose_address_was_removed_writes_it_again(state: Path, eventually: Any) -> None:
    gateway = discovery.ensure(state)
    deploy(gateway, min_concurrency=1)
    runner = who(gateway)
    (state / "gateway.json").unlink()
    eventually(lambda: discovery.find(state) == gateway)
    assert who(gateway) == runner
    assert (state / "gateway.json").stat().st_mode & 0o777 == 0o600
    assert "removed" not in (state / "gateway.log").read_text()


@pytest.mark.parametrize("made_anew", [False, True])
def test_a_gateway_whose_state_folder_was_removed_ends_with_its_runners(
    state: Path, eventually: Any, made_anew: bool
) -> None:
    gateway = discovery.ensure(state)
    deploy(gateway, min_concurrency=1)
    who(gateway)
    ghosts = processes_of(state)
    assert len(ghosts) >= 3
    shutil.rmtree(state)
    if made_anew:
        state.mkdir(mode=0o700)
        assert discovery.ensure(state).pid != gateway.pid
    eventually(lambda: not any(ghost in processes_of(state) for ghost in ghosts), timeout=40)
    assert discovery.find(state) if made_anew else not state.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_runners_outlive_a_gateway_and_the_next_one_adopts_them(
    state: Path, number: int, eventually: Any
) -> None:
    first = discovery.ensure(state)
    deploy(first, min_concurrency=1, auth="private")
    with control(first) as client:
        key = client.post("/api/keys").json()["key"]
        client.patch("/api/apps/tester/who/scaling", json={"keep_alive": 77})
        before = client.get("/api/apps/tester/who").json()
    runner = who(first, **with_key(key))
    end(first, state, number)
    second = discovery.ensure(state)
    assert (second.url, second.pid == first.pid, second.token == first.token) == (
        first.url,
        False,
        False,
    )
    assert who(second, **with_key(key)) == runner
    with control(second) as client:
        after = client.get("/api/apps/tester/who").json()
        assert [x["id"] for x in client.get("/api/apps/tester/who/runners").json()] == [runner]
    for name in ("revision", "options", "scaled", "deployed_at"):
        assert after[name] == before[name], name
    assert after["options"]["keep_alive"] == 77
    with httpx.Client(headers={"authorization": f"Bearer {first.token}"}) as old:
        assert old.get(f"{second.url}/api/apps").status_code == 401


def test_queued_requests_go_on_in_their_runners_when_gateways_die(
    state: Path, tmp_path: Path, eventually: Any
) -> None:
    began = tmp_path / "began"
    source = f"""
import os, time
def who(x: int) -> list[int]:
    with open({str(began)!r}, "a") as file: file.write(str(x))
    while not os.path.exists({str(tmp_path)!r} + f"/{{x}}"): time.sleep(0.01)
    return [x, os.getpid()]
"""
    gateway = discovery.ensure(state)
    deploy(gateway, source, min_concurrency=3, max_concurrency=3)
    queue = "/queue/tester/who"

    def submitted(number: int) -> str:
        told = httpx.post(f"{gateway.url}{queue}", json={"x": number}).json()
        eventually(lambda: began.exists() and str(number) in began.read_text())
        return str(told["request_id"])

    def answer(request: str) -> list[int]:
        url = f"{gateway.url}{queue}/requests/{request}"
        eventually(lambda: httpx.get(f"{url}/status").status_code == 200)
        found: list[int] = httpx.get(url).json()
        return found

    first, *ids = [submitted(number) for number in range(3)]
    (tmp_path / "0").touch()
    idle = answer(first)[1]  # the runner that would be the first to be given something
    for _ in range(2):
        end(gateway, state, signal.SIGKILL)
        gateway = discovery.ensure(state)
    with control(gateway) as client:
        eventually(lambda: client.get("/api/apps/tester/who").json()["in_flight"] == 2)
    time.sleep(1)  # now they have come to the runners, surely
    for number in (1, 2):
        (tmp_path / str(number)).touch()
    answers = [answer(request) for request in ids]
    assert [number for number, _ in answers] == [1, 2]
    assert len({idle, *(runner for _, runner in answers)}) == 3
    assert sorted(began.read_text()) == ["0", "1", "2"]


def test_a_runner_that_died_with_its_gateway_is_replaced(state: Path) -> None:
    first = discovery.ensure(state)
    deploy(first, min_concurrency=1)
    runner = who(first)
    store = Store(state / "store.db")
    (row,) = store.select(RunnerRow, "id = ?", runner)
    store.close()
    os.kill(first.pid, signal.SIGSTOP)  # it cannot notice
    os.kill(row.process["pid"], signal.SIGKILL)
    end(first, state, signal.SIGKILL)
    second = discovery.ensure(state)
    assert who(second) != runner


def test_a_stopped_gateway_leaves_no_process_and_no_address(state: Path, eventually: Any) -> None:
    gateway = discovery.ensure(state)
    deploy(gateway, min_concurrency=2, max_concurrency=2)
    who(gateway)
    assert len(processes_of(state)) >= 3
    stop(gateway, state)
    assert not (state / "gateway.json").exists()
    eventually(lambda: processes_of(state) == [])


def test_a_stop_ends_what_does_not_want_to_end(state: Path, eventually: Any) -> None:
    source = WHO.replace("    time.sleep(x)", "    while x: time.sleep(1)")
    gateway = discovery.ensure(state)
    deploy(gateway, source, termination_grace_period_seconds=1)
    with Wire(gateway) as busy:
        busy.send(post("/run/tester/who", {"x": 1}))
        with control(gateway) as client:
            eventually(lambda: client.get("/api/apps/tester/who").json()["in_flight"] == 1)
        stop(gateway, state)
    eventually(lambda: processes_of(state) == [])


def test_a_deploy_that_a_killed_gateway_left_has_failed(state: Path, eventually: Any) -> None:
    first = discovery.ensure(state)
    deploy(first)
    with control(first) as client:
        active = client.get("/api/apps/tester/who").json()["revision"]
    end(first, state, signal.SIGKILL)
    store = Store(state / "store.db")
    (row,) = store.select(Revision, "id = ?", active)
    row.id, row.number, row.state = "proving", 2, "PROVING"
    orphan = RunnerRow("orphan", "tester", "gone", "no-revision", "IDLE", "s", "XS")
    begun = RunnerRow("begun", "tester", "who", active, "PENDING", "s", "XS")
    with store.transaction():
        for thing in (row, orphan, begun):
            store.put(thing)
    store.close()
    second = discovery.ensure(state)
    assert who(second)
    store = Store(state / "store.db")
    eventually(lambda: store.select(RunnerRow, "id = 'begun'")[0].state == "TERMINATED")
    assert store.select(Revision, "id = 'proving'")[0].state == "FAILED"
    told = [e.data["step"] for e in store.events(0) if e.data.get("revision") == "proving"]
    assert told == ["failed"]
    assert store.select(RunnerRow, "id = 'orphan'")[0].state == "TERMINATED"
    assert store.select(App)[0].revision == active
    store.close()


def test_a_runner_whose_revision_does_not_serve_is_ended_after_a_restart(
    state: Path, eventually: Any
) -> None:
    first = discovery.ensure(state)
    deploy(first, min_concurrency=1)
    runner = who(first)
    end(first, state, signal.SIGKILL)
    with contextlib.closing(sqlite3.connect(state / "store.db")) as database, database:
        database.execute("UPDATE runners SET revision = 'r2'")
        names = [row[1] for row in database.execute("PRAGMA table_info(revisions)")]
        kept = ", ".join("'r2'" if n == "id" else "9" if n == "number" else n for n in names)
        database.execute(f"INSERT INTO revisions SELECT {kept} FROM revisions")
    second = discovery.ensure(state)
    assert who(second) != runner
    with control(second) as client:
        eventually(
            lambda: (
                runner not in [x["id"] for x in client.get("/api/apps/tester/who/runners").json()]
            )
        )


def test_what_it_writes_is_for_its_user_only(state: Path) -> None:
    gateway = discovery.ensure(state)
    deploy(gateway, min_concurrency=1)
    who(gateway)
    for path in [state, *state.rglob("*")]:
        if not path.is_symlink():
            expected = 0o700 if path.is_dir() else 0o600
            if path == state / "data" / "tester":
                expected = 0o770  # containers have its group; nobody else gets past `data`
            assert path.stat().st_mode & 0o777 == expected, path
    store = Store(state / "store.db")
    sockets = Path(store.note("sockets", str))
    store.close()
    assert sockets.stat().st_mode & 0o777 == 0o700
    assert len(os.fsencode(sockets / "0123456789ab.sock")) < 100


def test_what_others_could_read_is_for_its_user_only_again(state: Path) -> None:
    tls = state / "tls"
    tls.mkdir()
    kept = [state / "secrets.key", state / "queue.db", tls / "authority.pem"]
    for path in (*kept, mine := state / "notes.txt"):
        path.touch()
        path.chmod(0o644)
    kept[0].write_bytes(Fernet.generate_key())  # an empty one stops the start
    discovery.ensure(state)
    for path in kept:
        assert path.stat().st_mode & 0o777 == 0o600, path
    assert mine.stat().st_mode & 0o777 == 0o644


def test_the_token_is_nowhere_but_in_its_file(state: Path) -> None:
    gateway = discovery.ensure(state)
    deploy(gateway, min_concurrency=1)
    httpx.get(f"{gateway.url}/api/apps", headers={"authorization": f"Basic {gateway.token}"})
    token = gateway.token.encode()
    for path in state.rglob("*"):
        if path.is_file() and path.name != "gateway.json":
            assert token not in path.read_bytes(), path
    for process in processes_of(state):
        with contextlib.suppress(psutil.Error):
            text = [*process.cmdline(), *process.environ().values()]
            assert not any(gateway.token in part for part in text), process
    assert gateway.token not in repr(gateway)


def test_an_idle_gateway_costs_next_to_nothing(
    state: Path, capsys: pytest.CaptureFixture[str], eventually: Any
) -> None:
    gateway = discovery.ensure(state)
    deploy(gateway, min_concurrency=1)
    process = psutil.Process(gateway.pid)

    def spent() -> float:
        return sum(process.cpu_times()[:2])

    def in_two_seconds() -> float:
        before, deadline = spent(), time.monotonic() + 2
        eventually(lambda: time.monotonic() > deadline)
        return spent() - before

    memory, cpu = process.memory_info().rss / 1e6, in_two_seconds()
    with capsys.disabled():
        print(f"\nidle gateway: {memory:.0f} MB, {cpu * 1000:.0f} ms of CPU in 2 s")
    assert cpu < 0.5


def test_a_newer_store_is_one_sentence(state: Path) -> None:
    stop(discovery.ensure(state), state)
    with contextlib.closing(sqlite3.connect(state / "store.db")) as database:
        database.execute("PRAGMA user_version = 999")
    answer = other_gateway(state)
    assert answer.returncode == 1
    assert "newer fal_notebook" in answer.stderr
    assert "Traceback" not in answer.stderr
    with contextlib.closing(sqlite3.connect(state / "store.db")) as database:
        database.execute("PRAGMA user_version = 1")


@pytest.mark.parametrize("newer", ["queue.db", "storage.db", "store.db"])
def test_one_newer_database_leaves_all_untouched(state: Path, newer: str) -> None:
    stop(discovery.ensure(state), state)
    with contextlib.closing(sqlite3.connect(state / newer)) as database:
        (found,) = database.execute("PRAGMA user_version").fetchone()
        database.execute(f"PRAGMA user_version = {found + 1}")
    before, files = dumps(state), sorted(state.glob("*.db*"))
    answer = other_gateway(state)
    assert answer.returncode == 1
    assert f"{newer} was written by a newer fal_notebook" in answer.stderr
    assert (dumps(state), sorted(state.glob("*.db*"))) == (before, files)
    with contextlib.closing(sqlite3.connect(state / newer)) as database:
        database.execute(f"PRAGMA user_version = {found}")


def dumps(state: Path) -> dict[str, list[str]]:
    """Return all that the databases of a state folder hold, by their names."""
    found = {}
    for path in sorted(state.glob("*.db")):
        with contextlib.closing(sqlite3.connect(f"file:{path}?immutable=1", uri=True)) as database:
            version = str(database.execute("PRAGMA user_version").fetchone())
            found[path.name] = [version, *database.iterdump()]
    return found


def test_a_result_goes_soon_after_its_time(
    state: Path, monkeypatch: pytest.MonkeyPatch, eventually: Any
) -> None:
    monkeypatch.setenv("FAL_NOTEBOOK_RESULTS_KEPT", "1")
    gateway = discovery.ensure(state)
    deploy(gateway)
    told = httpx.post(f"{gateway.url}/queue/tester/who", json={}).json()
    eventually(lambda: httpx.get(told["status_url"]).status_code == 404)


@pytest.mark.parametrize(
    ("kept", "period"), [((604800, 2592000), 3600), ((8, 0), 2), ((604800, 60), 15), ((0, 0), 1)]
)
def test_house_is_kept_in_time_for_what_is_kept_shortest(
    kept: tuple[int, int], period: float
) -> None:
    assert house_period(*kept) == period


def test_requests_that_come_while_it_stops_are_refused(state: Path, eventually: Any) -> None:
    gateway = discovery.ensure(state)
    deploy(gateway)
    with Wire(gateway) as busy, control(gateway) as client:
        busy.send(post("/run/tester/who", {"x": 2}))
        eventually(lambda: client.get("/api/apps/tester/who").json()["in_flight"] == 1)
        client.post("/api/gateway/stop")
        answer = httpx.post(f"{gateway.url}/run/tester/who", json={})
        assert (answer.status_code, answer.json()["detail"]) == (503, "the gateway is stopping")
        assert busy.response()[0] == 200  # what is in flight may end
    discovery.wait_until_gone(state)


def test_a_sockets_folder_that_others_may_enter_is_not_used(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.db")
    first = sockets_folder(store)
    assert sockets_folder(store) == first
    first.chmod(0o777)
    second = sockets_folder(store)
    first.rmdir()
    first.symlink_to(second)
    assert second != first
    assert sockets_folder(store) == second
    first.unlink()
    second.rmdir()
    store.close()


def test_a_gateway_withdraws_its_own_address_only(tmp_path: Path) -> None:
    mine = discovery.GatewayInfo("http://127.0.0.1:1", "t", 1, 1, "1")
    discovery.write(tmp_path, dataclasses.replace(mine, pid=2))
    discovery.withdraw(tmp_path, mine)
    assert discovery.info_file(tmp_path).exists()
    discovery.write(tmp_path, mine)
    discovery.withdraw(tmp_path, mine)
    assert not discovery.info_file(tmp_path).exists()


def test_a_gateway_that_leaves_its_runners_lets_requests_finish(
    state: Path, eventually: Any
) -> None:
    gateway = discovery.ensure(state)
    deploy(gateway)
    url = f"{gateway.url}/run/tester/who"
    with control(gateway) as client, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(httpx.post, url, json={"x": 1}, timeout=20)
        eventually(lambda: client.get("/api/apps/tester/who").json()["in_flight"])
        os.kill(gateway.pid, signal.SIGTERM)
        assert answer.result().status_code == 200


BIG = """
import os, fal_notebook
def scripted():
    data = os.urandom(2_000_000)
    return lambda: len(data)
fal_notebook.deploy(scripted(), name="big")
"""


def test_a_script_that_deploys_to_a_full_disk_shows_one_error(
    small_disk: Path, tmp_path: Path
) -> None:
    gateway = discovery.ensure(small_disk)
    script = tmp_path / "big.py"
    script.write_text(BIG)
    try:
        fill(small_disk, leave=400_000)
        variables = {**os.environ, "FAL_NOTEBOOK_STATE": str(small_disk)}
        answer = subprocess.run(
            [sys.executable, script], env=variables, capture_output=True, text=True, timeout=60
        )
        assert answer.returncode == 1
        assert answer.stderr.count("Traceback") == 1
        assert f"DiskFullError: no room is left in {small_disk}" in answer.stderr
    finally:
        (small_disk / "filler").unlink(missing_ok=True)
        stop(gateway, small_disk)
