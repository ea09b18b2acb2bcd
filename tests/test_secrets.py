"""Stored secrets: encrypted at rest, given to runners by name, found in payloads."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from IPython.core.error import UsageError

from fal_notebook import cli
from fal_notebook.exceptions import NotFoundError, OptionError

VALUE = "correct horse battery staple"


@pytest.fixture
def stored(gateway, monkeypatch):
    monkeypatch.setenv("VAULT_WORDS", VALUE)
    cli.run(["secrets", "set", "VAULT_WORDS", "--from-env"], "fal-notebook")
    monkeypatch.delenv("VAULT_WORDS")
    yield "VAULT_WORDS"
    cli.run(["secrets", "delete", "VAULT_WORDS"], "fal-notebook")


def test_a_runner_sees_the_secrets_that_its_app_declares(shell, stored) -> None:
    shell.run(
        "%%fal_function secrets=VAULT_WORDS wait=true\n"
        "def words() -> str:\n    import os; return os.environ['VAULT_WORDS']\n"
    )
    assert shell["words"]() == VALUE


def test_a_runner_does_not_see_a_secret_that_its_app_does_not_declare(shell, stored) -> None:
    shell.run(
        "%%fal_function wait=true\ndef seen() -> bool:\n"
        "    import os; return 'VAULT_WORDS' in os.environ\n"
    )
    assert shell["seen"]() is False


def test_a_stored_secret_in_a_payload_is_refused_by_the_name_of_the_variable(shell, stored) -> None:
    shell.run(f"settings = {{'words': {VALUE!r}}}")
    with pytest.raises(UsageError, match="`settings`") as refused:
        shell.run("%%fal_function\ndef leak() -> str:\n    return settings['words']\n")
    assert VALUE not in str(refused.value)


def test_allow_secret_lets_a_stored_secret_travel_in_one_variable(shell, stored) -> None:
    shell.run(f"words = {VALUE!r}")
    shell.run("%%fal_function allow_secret=words wait=true\ndef told() -> str:\n    return words\n")
    assert shell["told"]() == VALUE


def test_a_secret_that_was_never_set_is_refused_at_deploy(shell) -> None:
    with pytest.raises(UsageError, match="there is no secret NEVER_SET"):
        shell.run("%%fal_function secrets=NEVER_SET\ndef f() -> int:\n    return 1\n")


def test_a_secret_may_come_through_a_pipe(gateway) -> None:
    line = [sys.executable, "-m", "fal_notebook.cli", "secrets", "set", "PIPED_WORDS"]
    done = subprocess.run(line, input=f"{VALUE}\n", capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("PIPED_WORDS is stored")
    cli.run(["secrets", "delete", "PIPED_WORDS"], "fal-notebook")
    empty = subprocess.run(line, input="", capture_output=True, text=True, timeout=60)
    assert (empty.returncode, empty.stderr) == (
        2,
        "fal-notebook: the value of PIPED_WORDS is empty\n",
    )


def test_secrets_are_listed_without_values_and_encrypted_at_rest(
    stored, private_state: Path
) -> None:
    listed = str(cli.run(["secrets", "list"], "fal-notebook"))
    assert stored in listed
    assert VALUE not in listed
    for file in private_state.glob("store.db*"):
        assert VALUE.encode() not in file.read_bytes()
    assert (private_state / "secrets.key").stat().st_mode & 0o777 == 0o600


def test_nonsense_is_refused(gateway) -> None:
    with pytest.raises(NotFoundError, match="NOPE"):
        cli.run(["secrets", "delete", "NOPE"], "fal-notebook")
    with pytest.raises(Exception, match=re.escape("no variable NOPE")):
        cli.run(["secrets", "set", "NOPE", "--from-env"], "fal-notebook")


def test_a_name_that_is_no_variable_is_refused(gateway, monkeypatch) -> None:
    monkeypatch.setenv("a-b", "value of some length")
    with pytest.raises(OptionError, match="a-b"):
        cli.run(["secrets", "set", "a-b", "--from-env"], "fal-notebook")


def test_what_the_kernel_passes_on_is_encrypted_at_rest(shell, monkeypatch, private_state) -> None:
    monkeypatch.setenv("PASSED_ON", "a value of the kernel only")
    shell.run(
        "%%fal_function pass_env=PASSED_ON wait=true\n"
        "def passed() -> str:\n    import os; return os.environ['PASSED_ON']\n"
    )
    assert shell["passed"]() == "a value of the kernel only"
    for file in private_state.glob("store.db*"):
        assert b"a value of the kernel only" not in file.read_bytes()
