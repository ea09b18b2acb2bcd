"""Values of secrets in log files: masked where they stand, whoever wrote them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import control, kill_gateway

from fal_notebook import cli, discovery, settings
from fal_notebook.discovery import GatewayInfo
from fal_notebook.exceptions import RemoteError
from fal_notebook.gateway.logs.redaction import Redaction
from fal_notebook.gateway.logs.scrubbing import mask, scrub
from fal_notebook.gateway.store import RetiredSecret, RunnerRow, Secret, Store
from fal_notebook.gateway.vault import Vault

VALUE = "zebra quagga okapi tapir"
NEXT = "heron egret stork bittern"
MASKED = b"[secret WORDS]**********"


def put(monkeypatch: pytest.MonkeyPatch, value: str, name: str = "SCRUBBED") -> None:
    monkeypatch.setenv(name, value)
    cli.run(["secrets", "set", name, "--from-env"], "fal-notebook")
    monkeypatch.delenv(name)


@pytest.fixture
def stored(gateway: GatewayInfo, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    put(monkeypatch, VALUE)
    yield "SCRUBBED"
    if "SCRUBBED" in str(cli.run(["secrets", "list"], "fal-notebook")):
        cli.run(["secrets", "delete", "SCRUBBED"], "fal-notebook")


def files() -> bytes:
    """Return all that stands in any log."""
    return b"".join(path.read_bytes() for path in (settings.state_folder() / "logs").iterdir())


WRITES = """
%%fal_function secrets=SCRUBBED serve=true wait=true keep_alive=60
def writes(mark: str = "", end: bool = False) -> str:
    import os, subprocess, sys
    value = os.environ["SCRUBBED"].encode()
    os.write(1, b"past python " + value + b" " + mark.encode() + b"\\n")
    subprocess.run(["sh", "-c", 'echo "child $SCRUBBED"'])
    os.write(2, b"two writes " + value[:9])
    os.write(2, value[9:] + b"\\n")
    if end:
        os._exit(3)
    return os.environ["FAL_RUNNER_ID"]
"""


def test_what_is_written_past_python_is_masked_in_the_file(
    shell: Any, stored: str, eventually: Any
) -> None:
    shell.run(WRITES.strip())
    log = settings.state_folder() / "logs" / f"{shell['writes'](mark='first')}.log"
    eventually(lambda: VALUE.encode() not in log.read_bytes())
    text = log.read_text()
    for line in ("past python", "child", "two writes"):
        assert f"{line} [secret SCRUBBED]" in text
    shell["writes"](mark="second")
    eventually(lambda: b"second" in log.read_bytes() and VALUE.encode() not in log.read_bytes())


KEYED = """
%%fal_function serve=true wait=true keep_alive=60
def keyed(ask: str) -> str:
    import os, subprocess
    if ask == "raise":
        raise ValueError(os.environ["FAL_KEY"])
    if ask == "print":
        subprocess.run(["sh", "-c", "env | grep KEY="])
        os.write(1, b"here " + os.environ["FAL_NOTEBOOK_KEY"].encode() + b"\\n")
    return os.environ["FAL_RUNNER_ID"] + " " + os.environ["FAL_KEY"][:0]
"""


def test_a_runners_own_key_shows_in_no_log_and_no_error(
    shell: Any, gateway: GatewayInfo, eventually: Any
) -> None:
    shell.run(KEYED.strip())
    runner = shell["keyed"](ask="print").strip()
    log = settings.state_folder() / "logs" / f"{runner}.log"
    eventually(lambda: log.read_bytes().count(f"{runner}:[secret FAL_KEY]***".encode()) == 3)
    shown = [line["message"] for line in shell["keyed"].logs()]
    assert len([line for line in shown if f"{runner}:[secret FAL_KEY]" in line]) == 3
    with pytest.raises(RemoteError):
        shell["keyed"](ask="raise")
    with control(gateway) as client:
        eventually(lambda: client.get("/api/apps/tester/keyed/errors").json())
        (failure,) = client.get("/api/apps/tester/keyed/errors").json()
    assert failure["message"].startswith(f"{runner}:[secret FAL_KEY]")
    assert "frk_" not in str(failure)


def test_a_runner_that_ends_leaves_no_value_behind(
    shell: Any, stored: str, gateway: GatewayInfo, eventually: Any
) -> None:
    shell.run(WRITES.strip())
    runner = shell["writes"]()
    with control(gateway) as api:
        assert api.post("/run/tester/writes", json={"end": True}).status_code == 503
        eventually(lambda: runner not in [row["id"] for row in shell["writes"].runners()])
    log = settings.state_folder() / "logs" / f"{runner}.log"
    assert b"past python [secret" in log.read_bytes()
    assert VALUE.encode() not in log.read_bytes()


SERVER = """
%%fal_server told exposed_port=8000 secrets=SCRUBBED wait=true
echo "the server has $SCRUBBED"; exec {python} -m http.server $PORT --bind 127.0.0.1
"""


def test_what_a_server_of_the_users_writes_is_masked(
    shell: Any, stored: str, eventually: Any
) -> None:
    shell.run(SERVER.strip().format(python=sys.executable))
    eventually(lambda: b"the server has [secret SCRUBBED]" in files())
    assert VALUE.encode() not in files()


def test_a_value_that_was_rotated_or_deleted_shows_in_no_log(
    shell: Any,
    stored: str,
    gateway: GatewayInfo,
    monkeypatch: pytest.MonkeyPatch,
    eventually: Any,
) -> None:
    shell.run(WRITES.strip())
    shell["writes"](mark="before")
    put(monkeypatch, NEXT)
    with control(gateway) as api:
        logs = "/api/apps/tester/writes/logs"
        assert VALUE not in api.get(logs).text
        shell["writes"](mark="rotated")  # this runner lives on with the old value
        assert VALUE not in api.get(logs).text
        cli.run(["secrets", "delete", "SCRUBBED"], "fal-notebook")
        shell["writes"](mark="deleted")
        assert VALUE not in api.get(logs).text
    eventually(lambda: b"deleted" in files() and VALUE.encode() not in files())


def test_the_next_gateway_knows_a_value_that_was_deleted(
    own_gateway: Path, shell: Any, monkeypatch: pytest.MonkeyPatch, eventually: Any
) -> None:
    put(monkeypatch, VALUE)
    shell.run(WRITES.strip())
    shell["writes"]()
    cli.run(["secrets", "delete", "SCRUBBED"], "fal-notebook")
    kill_gateway(own_gateway)
    discovery.wait_until_gone(own_gateway)
    shell["writes"](mark="after")
    assert VALUE not in "\n".join(cli.run(["logs", "writes"], "fal-notebook"))
    eventually(lambda: b"after" in files() and VALUE.encode() not in files())


# --- one file ---------------------------------------------------------------------------------
@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "a.log"


NAMES = {VALUE.encode(): "WORDS"}


def test_a_value_that_comes_in_two_writes_is_found_by_the_second_look(log: Path) -> None:
    log.write_bytes(b"one\ntwo " + VALUE[:9].encode())
    done = scrub(log, 0, NAMES)
    with log.open("ab") as file:
        file.write(VALUE[9:].encode() + b" three\n")
    assert scrub(log, done, NAMES) == log.stat().st_size
    assert log.read_bytes() == b"one\ntwo " + MASKED + b" three\n"


def test_a_value_between_two_pieces_that_are_read_is_found(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fal_notebook.gateway.logs.scrubbing.SIZE", 128)
    log.write_bytes((b"x" * 50 + VALUE.encode()) * 9)
    scrub(log, 0, NAMES)
    assert log.read_bytes() == (b"x" * 50 + MASKED) * 9


@pytest.mark.parametrize(
    ("value", "masked"),
    [
        (b"p4ss", b"****"),
        (b"line one\nsecond", b"********\n******"),
        (b"a first line\nsecond", b"[secret S]**\n******"),
    ],
)
def test_a_mask_is_as_long_and_has_the_same_lines(value: bytes, masked: bytes) -> None:
    assert mask(value, "S") == masked


def test_a_log_that_is_gone_or_was_emptied_is_begun_anew(log: Path) -> None:
    assert scrub(log, 70, NAMES) == 0
    log.write_bytes(VALUE.encode())
    assert scrub(log, 700, NAMES) == len(VALUE)
    assert log.read_bytes() == MASKED


# --- how long values are known ----------------------------------------------------------------
def test_a_retired_value_is_known_while_a_log_may_hold_it(tmp_path: Path) -> None:
    store, vault = Store(tmp_path / "store.db"), Vault(tmp_path)
    store.put(RetiredSecret("OLD", vault.encrypt(VALUE), retired_at=50.0))
    store.put(Secret("NEW", vault.encrypt(NEXT)))
    assert Redaction(store, vault).current()(f"{VALUE} {NEXT}") == "[secret OLD] [secret NEW]"
    row = RunnerRow("r", "o", "app", "rev", "TERMINATED", "s", "CPU", created_at=49.0)
    store.put(row)
    store.forget_retired(["r"])
    assert Redaction(store, vault).current()(VALUE) == "[secret OLD]"
    row.created_at = 51.0
    store.put(row)
    store.forget_retired(["r"])
    assert Redaction(store, vault).current()(VALUE) == VALUE
    store.close()


def test_values_are_kept_encrypted_when_they_are_retired(
    stored: str, private_state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(monkeypatch, NEXT)
    for file in private_state.glob("store.db*"):
        assert VALUE.encode() not in file.read_bytes()
    assert os.path.exists(private_state / "store.db")
