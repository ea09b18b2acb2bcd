"""State files torn, damaged or newer: what was complete is there, or all stays as it is."""

from __future__ import annotations

import contextlib
import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest
from gateway_processes import deploy, other_gateway, processes_of, stop
from serving import eventually

from fal_notebook import discovery
from fal_notebook.discovery import GatewayInfo
from fal_notebook.exceptions import StoreError
from fal_notebook.gateway import schemas
from fal_notebook.gateway.database import connect
from fal_notebook.gateway.storage import table
from fal_notebook.gateway.store import MIGRATIONS, App, Store

PLACES = 60
WRITTEN = 40
PAGE, HEADER = 4096, 32
_Damage = Callable[[bytearray, int], bytearray]


def cut(log: bytearray, place: int) -> bytearray:
    return log[:place]


def flipped(log: bytearray, place: int) -> bytearray:
    log[place] ^= 0xFF
    return log


def zeroed(log: bytearray, place: int) -> bytearray:
    return log[:place] + bytes(len(log) - place)


def files(folder: Path) -> dict[str, bytes]:
    """Return what must stay: all but the index (``-shm``) that SQLite makes, and an empty log."""
    content = {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix != ".db-shm"}
    return {name: data for name, data in content.items() if data or name == "store.db"}


def refused(folder: Path, sentence: str) -> None:
    """Check that a store is refused with one sentence and stays as it is."""
    before = files(folder)
    with pytest.raises(StoreError, match=sentence) as refusal:
        schemas.examine(folder)
    assert "\n" not in str(refusal.value)
    assert files(folder) == before


@pytest.fixture
def died(tmp_path: Path) -> tuple[Path, list[int]]:
    """The files of a store whose process was killed, and where in the log each change ends.

    Each change is one transaction of two rows.
    """
    folder, ends = tmp_path / "died", list[int]()
    (tmp_path / "lives").mkdir()
    store = Store(tmp_path / "lives" / "store.db")
    store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for number in range(WRITTEN):
        with store.transaction():
            store.put(App("me", f"app-{number:02}", None, "x" * number * 100))
            store.emit("deploy", "me", f"app-{number:02}", {})
        ends.append((tmp_path / "lives" / "store.db-wal").stat().st_size)
    shutil.copytree(tmp_path / "lives", folder)
    store.close()
    return folder, ends


@pytest.mark.parametrize("damage", [cut, flipped, zeroed])
def test_a_torn_log_keeps_each_change_before_the_tear_and_no_part_of_another(
    died: tuple[Path, list[int]], tmp_path: Path, damage: _Damage
) -> None:
    folder, ends = died
    chance = random.Random(damage.__name__)
    for place in [0, HEADER - 1, *(chance.randrange(ends[-1]) for _ in range(PLACES))]:
        torn = shutil.copytree(folder, tmp_path / "torn")
        log = torn / "store.db-wal"
        content = damage(bytearray(log.read_bytes()), place)
        log.write_bytes(content)
        if place < HEADER <= len(content) and any(content):
            # Without its header, the log would be taken for an empty one.
            refused(torn, r"store.db-wal is damaged \(its header is wrong\)")
        else:
            complete = sum(end <= place for end in ends)
            names = [f"app-{number:02}" for number in range(complete)]
            store = Store(torn / "store.db")
            assert [app.name for app in store.select(App)] == names
            assert [event.app for event in store.events(0)] == names
            store.emit("deploy", "me", "after", {})  # it goes on
            store.close()
        shutil.rmtree(torn)


def test_a_damaged_file_is_refused_and_neither_it_nor_its_log_is_written(
    died: tuple[Path, list[int]], tmp_path: Path
) -> None:
    folder, _ = died
    whole = checkpointed(folder, tmp_path / "whole.db")
    for page in range(len(whole) // PAGE):
        damaged = shutil.copytree(folder, tmp_path / "damaged")
        torn = whole[: page * PAGE] + b"\x55" * PAGE + whole[(page + 1) * PAGE :]
        (damaged / "store.db").write_bytes(torn)
        for log in (damaged / "store.db-wal", damaged / "store.db-shm"):
            log.unlink()
        refused(damaged, r"store.db is damaged \(.*\) and stays as it is: put back a copy of it")
        shutil.rmtree(damaged)


def test_a_log_does_not_hide_the_damage_below_it(
    died: tuple[Path, list[int]], tmp_path: Path
) -> None:
    folder, _ = died
    whole = checkpointed(folder, tmp_path / "whole.db")
    (folder / "store.db").write_bytes(whole[:PAGE] + b"\x55" * (len(whole) - PAGE))
    log = folder / "store.db-wal"
    log.write_bytes(log.read_bytes()[: HEADER + 24 + PAGE])  # its first page alone
    refused(folder, r"store.db is damaged \(")


def checkpointed(folder: Path, path: Path) -> bytes:
    """Return the file with all that is in its log; the folder's own stays as it is."""
    with sqlite3.connect(f"file:{folder / 'store.db'}?mode=ro", uri=True) as store:
        with sqlite3.connect(path) as copy:
            store.backup(copy)
        copy.close()
    store.close()
    return path.read_bytes()


@pytest.mark.parametrize("left", [b"", None])
def test_a_log_whose_file_is_empty_or_gone_is_not_removed(
    died: tuple[Path, list[int]], left: bytes | None
) -> None:
    folder, _ = died
    (folder / "store.db").unlink()
    if left is not None:
        (folder / "store.db").write_bytes(left)
    refused(folder, r"store.db-wal is damaged \(its store.db is empty or gone\)")


def test_what_a_newer_version_left_in_its_log_is_refused_and_stays(
    died: tuple[Path, list[int]],
) -> None:
    folder, _ = died
    newer = sqlite3.connect(folder / "store.db", isolation_level=None)
    newer.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    killed = shutil.copytree(folder, folder.parent / "killed")
    newer.close()
    assert (killed / "store.db-wal").stat().st_size
    refused(killed, r"newer fal_notebook \(schema .*\); upgrade it or set")


def test_a_damage_that_is_met_later_is_named_too(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.db")
    store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with (tmp_path / "store.db").open("r+b") as file:
        size = file.seek(0, 2)
        file.seek(4096)  # behind the schema, which is read already
        file.write(b"\xff" * (size - 4096))
    store._db.execute("PRAGMA shrink_memory")
    with pytest.raises(StoreError, match=r"is damaged .*malformed"):
        store.select(App)
    store.close()


def test_a_gateway_starts_with_what_was_complete_before_the_tear(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = discovery.ensure(state)
    deploy(gateway, max_concurrency=1)
    queue = f"{gateway.url}/queue/tester/who/requests"
    requests = [finished(gateway) for _ in range(10)]
    for process in processes_of(state):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    discovery.wait_until_gone(state)
    size = (state / "queue.db-wal").stat().st_size
    for place in (HEADER, size // 2, size - 1):
        torn = shutil.copytree(state, tmp_path / f"torn-{place}", symlinks=True)
        log = torn / "queue.db-wal"
        log.write_bytes(zeroed(bytearray(log.read_bytes()), place))
        monkeypatch.setenv("FAL_NOTEBOOK_STATE", str(torn))
        found = discovery.ensure(torn)
        answers = [httpx.get(f"{queue}/{one}".replace(gateway.url, found.url)) for one in requests]
        known = sum(answer.is_success for answer in answers)
        assert all(answer.is_success for answer in answers[:known])
        assert (known == 0) == (place == HEADER)
        assert finished(found)
        stop(found, torn)


def finished(gateway: GatewayInfo) -> str:
    """Return the id of a request that is done."""
    asked = httpx.post(f"{gateway.url}/queue/tester/who", json={}).json()
    eventually(lambda: httpx.get(asked["status_url"]).status_code == 200)
    return str(asked["request_id"])


def test_one_that_is_damaged_is_refused_before_another_is_opened(
    died: tuple[Path, list[int]],
) -> None:
    folder, _ = died
    connect(folder / "storage.db", table.MIGRATIONS).close()
    with (folder / "storage.db").open("r+b") as file:
        file.seek(PAGE)  # its first page, with the version, is whole
        file.write(b"\x55" * PAGE)
    before = files(folder)
    with pytest.raises(StoreError, match=r"storage.db is damaged"):
        schemas.examine(folder)
    assert files(folder) == before


NAMES = list(schemas.KNOWN)


def made(folder: Path, count: int) -> None:
    """Make the databases of a gateway, as it does, up to one of them."""
    folder.mkdir()
    for name, migrations in list(schemas.KNOWN.items())[:count]:
        connect(folder / name, migrations).close()


@pytest.mark.parametrize(("emptied", "there"), [(0, 2), (0, 3), (1, 3)])
def test_a_database_that_was_emptied_is_refused(tmp_path: Path, emptied: int, there: int) -> None:
    state = tmp_path / "state"
    made(state, there)
    (state / NAMES[emptied]).write_bytes(b"")
    before = {path.name: path.read_bytes() for path in state.iterdir()}
    with pytest.raises(StoreError, match=f"{NAMES[emptied]} is damaged .it is empty, though"):
        schemas.examine(state)
    assert {path.name: path.read_bytes() for path in state.iterdir()} == before
    (state / NAMES[emptied]).rename(tmp_path / "elsewhere")  # as the refusal says
    schemas.examine(state)


@pytest.mark.parametrize("there", range(3))
def test_a_first_start_that_was_cut_off_goes_on(tmp_path: Path, there: int) -> None:
    state = tmp_path / "state"
    made(state, there)
    schemas.examine(state)
    (state / NAMES[there]).touch()  # made, and nothing is written yet
    schemas.examine(state)
    connect(state / NAMES[there], schemas.KNOWN[NAMES[there]]).close()
    schemas.examine(state)


def test_an_emptied_store_is_one_sentence_of_a_gateway(state: Path) -> None:
    stop(discovery.ensure(state), state)
    content = (state / "store.db").read_bytes()
    (state / "store.db").write_bytes(b"")
    answer = other_gateway(state)
    assert answer.returncode == 1
    assert answer.stderr.endswith("move it elsewhere to go on without what it holds\n")
    assert (state / "store.db").read_bytes() == b""
    (state / "store.db").write_bytes(content)


@pytest.mark.parametrize("stuck", range(3))
def test_a_gateway_makes_its_databases_in_the_order_that_is_known(
    tmp_path: Path, stuck: int
) -> None:
    """Else one that is empty would say nothing of those that stand after it."""
    state = tmp_path / "state"
    state.mkdir()
    (state / NAMES[stuck]).symlink_to(tmp_path / "nowhere" / "x.db")
    assert other_gateway(state).returncode == 1
    assert [name for name in NAMES if (state / name).exists()] == NAMES[:stuck]
    assert all((state / name).stat().st_size for name in NAMES[:stuck])
