"""Stored secrets: encrypted at rest, given to runners by name, found in payloads."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pty
import re
import sqlite3
import subprocess
import sys
import traceback
from pathlib import Path

import click
import httpx
import psutil
import pytest
from inside import close_gateway, open_gateway
from IPython.core.error import UsageError
from serving import control

from fal_notebook import cli, discovery, settings, sync
from fal_notebook.display import secrets_table
from fal_notebook.exceptions import (
    FalNotebookError,
    GatewayError,
    NotFoundError,
    OptionError,
    RemoteError,
)
from fal_notebook.gateway.logs.redaction import Redaction
from fal_notebook.gateway.operations import secrets
from fal_notebook.gateway.store import Secret, Store
from fal_notebook.gateway.vault import Vault
from fal_notebook.handle import shared_client
from fal_notebook.option_types import check_secret_name

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


def test_a_dry_run_refuses_what_a_deploy_would(shell, stored) -> None:
    shell.run(f"settings = {{'words': {VALUE!r}}}")
    leak = "def leak() -> str:\n    return settings['words']\n"
    with pytest.raises(UsageError, match="`settings`") as refused:
        shell.run(f"%%fal_function dry_run=true\n{leak}")
    assert VALUE not in str(refused.value)
    shell.run(f"%%fal_function dry_run=true allow_secret=settings secrets={stored}\n{leak}")
    with pytest.raises(UsageError, match="there is no secret NEVER_SET"):
        shell.run("%%fal_function dry_run=true secrets=NEVER_SET\ndef f() -> int:\n    return 1\n")


LEAKS = {
    "a global": f"words = {VALUE!r}\n%%fal_function\ndef leak():\n    return words\n",
    "a dry run": f"words = {VALUE!r}\n%%fal_function dry_run=true\ndef leak():\n    return words\n",
    "a literal": f"%%fal_function\ndef leak():\n    return {VALUE!r}\n",
    "a class attribute": "import fal_notebook as fal\n%%fal_app\nclass Leak(fal.App):\n"
    f"    words = {VALUE!r}\n    @fal.endpoint('/')\n    def f(self) -> str:\n"
    "        return self.words\n",
    "an option": f"%%fal_function message={VALUE!r}\ndef leak():\n    return 1\n",
    "an option of a dry run": f"%%fal_function dry_run=true message={VALUE!r}\ndef leak(): pass\n",
    "metadata": f'%%fal_function metadata={{"a": ["{VALUE}"]}}\ndef leak():\n    return 1\n',
    "a class": "import fal_notebook as fal\n%%fal_app\n"
    f"class Leak(fal.App, metadata={{'a': {VALUE!r}}}):\n"
    "    @fal.endpoint('/')\n    def f(self) -> int:\n        return 1\n",
    "a Dockerfile": f"%%fal_server leak exposed_port=8000\nFROM a/b\nENV X='{VALUE}'\n",
    "a command": f"%%fal_server leak exposed_port=8000 image=a/b cmd=['{VALUE}']\n",
    "a server": f"%%fal_server leak exposed_port=8000\necho {VALUE}\n",
}


@pytest.mark.parametrize("kind", LEAKS)
def test_nothing_of_a_refused_payload_stays(shell, stored, private_state: Path, kind: str) -> None:
    before, magic, cell = LEAKS[kind].rpartition("%%")
    shell.run(before)
    with pytest.raises(UsageError, match=stored):
        shell.run(magic + cell)
    for file in private_state.rglob("*"):
        assert not file.is_file() or VALUE.encode() not in file.read_bytes(), file


def test_a_refused_payload_that_a_revision_uses_stays(shell, stored, private_state: Path) -> None:
    shell.run(f"words = {VALUE!r}")
    source = "def told() -> str:\n    return words\n"
    shell.run(f"%%fal_function allow_secret=words wait=true\n{source}")
    used = {path.name for path in (private_state / "blobs").iterdir()}
    with pytest.raises(UsageError, match="`words`"):
        shell.run(f"%%fal_function force=true\n{source}")
    assert used == {path.name for path in (private_state / "blobs").iterdir()}


def test_allow_secret_lets_a_stored_secret_travel_in_one_variable(shell, stored) -> None:
    shell.run(f"words = {VALUE!r}")
    shell.run("%%fal_function allow_secret=words wait=true\ndef told() -> str:\n    return words\n")
    assert shell["told"]() == VALUE


def test_allow_secret_lets_a_stored_secret_stand_in_one_option(shell, monkeypatch) -> None:
    monkeypatch.setenv("A_STAGE", "production")
    cli.run(["secrets", "set", "A_STAGE", "--from-env"], "fal-notebook")
    source = "def said() -> int:\n    return 1\n"
    with pytest.raises(UsageError, match="message holds the value of the stored secret A_STAGE"):
        shell.run(f"%%fal_function allow_secret=metadata message='for production'\n{source}")
    shell.run(f"%%fal_function allow_secret=message message='for production' wait=true\n{source}")
    cli.run(["secrets", "delete", "A_STAGE"], "fal-notebook")


def test_a_variable_that_holds_a_key_stands_in_no_option(shell, monkeypatch) -> None:
    monkeypatch.setenv("OF_SOME_TOKEN", VALUE)
    with pytest.raises(UsageError, match=r"message .* the environment variable OF_SOME_TOKEN"):
        shell.run(f"%%fal_function message={VALUE!r}\ndef said(): pass\n")


def test_a_secret_that_was_never_set_is_refused_at_deploy(shell) -> None:
    with pytest.raises(UsageError, match=r"no secret NEVER_SET; .*\) and deploy again$"):
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


def test_a_secret_that_is_asked_for_is_not_echoed(gateway) -> None:
    line = [sys.executable, "-m", "fal_notebook.cli", "secrets", "set", "TYPED_WORDS"]
    terminal, end = pty.openpty()
    ends = {"stdin": end, "stdout": end, "stderr": end}
    asking = subprocess.Popen(line, start_new_session=True, **ends)
    os.close(end)
    shown = b""
    with contextlib.suppress(OSError):  # Linux says so that the other end is closed
        while data := os.read(terminal, 1024):
            shown += data
            if shown.endswith(b"TYPED_WORDS: "):  # the space comes once nothing is echoed
                os.write(terminal, f"{VALUE}\n".encode())
    assert asking.wait(20) == 0, shown
    os.close(terminal)
    assert b"TYPED_WORDS is stored" in shown
    assert VALUE.encode() not in shown
    cli.run(["secrets", "delete", "TYPED_WORDS"], "fal-notebook")


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


def test_a_value_on_the_line_is_refused_and_not_shown(gateway) -> None:
    for words in (["WORDS", VALUE], ["WORDS", f"--value={VALUE}"], ["WORDS", "--from-env", VALUE]):
        with pytest.raises(Exception, match="give the name alone") as refused:
            cli.run(["secrets", "set", *words], "fal-notebook")
        assert VALUE not in refused.value.format_message()
    with pytest.raises(Exception, match="a secret needs a name"):
        cli.run(["secrets", "set", "", "--from-env"], "fal-notebook")


def test_a_value_behind_an_equals_sign_is_neither_asked_for_nor_shown(gateway, monkeypatch) -> None:
    monkeypatch.setattr("click.termui.hidden_prompt_func", lambda prompt: pytest.fail(prompt))
    monkeypatch.setattr("fal_notebook.cli._asked", lambda name: pytest.fail(name))
    for words in (["TT=abc12345"], ["TT=abc12345", "--from-env"]):
        with pytest.raises(Exception, match="give the name alone") as refused:
            cli.run(["secrets", "set", *words], "fal-notebook")
        assert "abc12345" not in str(refused.value)
    for name in ("9x", "a-b", "x" * 200):
        with pytest.raises(OptionError, match="it begins with a letter or '_'"):
            cli.run(["secrets", "set", name], "fal-notebook")


def test_what_is_deleted_has_a_name_that_a_secret_may_have(gateway) -> None:
    with pytest.raises(OptionError, match=r"'\.\./x' cannot be a secret's name"):
        cli.run(["secrets", "delete", "../x"], "fal-notebook")


def test_a_value_above_the_limit_is_refused(gateway, monkeypatch) -> None:
    monkeypatch.setenv("LONG_WORDS", "é" * 40_000)
    with pytest.raises(OptionError, match="the value of LONG_WORDS is above 64 KiB"):
        cli.run(["secrets", "set", "LONG_WORDS", "--from-env"], "fal-notebook")


def test_a_value_that_could_not_be_redacted_is_refused(gateway, monkeypatch) -> None:
    monkeypatch.setenv("TINY_WORDS", "ab\n")
    with pytest.raises(OptionError, match="fewer than 4 characters"):
        cli.run(["secrets", "set", "TINY_WORDS", "--from-env"], "fal-notebook")


def test_names_of_the_runners_own_variables_are_refused(shell, monkeypatch) -> None:
    monkeypatch.setenv("FAL_DATA_DIR", "some long value")
    with pytest.raises(OptionError, match=r"'FAL_DATA_DIR' cannot be a secret's name: .* reserved"):
        cli.run(["secrets", "set", "FAL_DATA_DIR", "--from-env"], "fal-notebook")
    for option in ("secrets=FAL_DATA_DIR", "pass_env=FAL_DATA_DIR", "pass_env=FAL_KEY"):
        with pytest.raises(UsageError, match="names that begin with FAL_ are reserved"):
            shell.run(f"%%fal_function {option}\ndef f() -> int:\n    return 1\n")


def test_a_declared_secret_named_fal_key_wins(shell, monkeypatch) -> None:
    monkeypatch.setenv("FAL_KEY", VALUE)
    cli.run(["secrets", "set", "FAL_KEY", "--from-env"], "fal-notebook")
    monkeypatch.delenv("FAL_KEY")
    keyed = "def keyed() -> str:\n    import os; return os.environ['FAL_KEY']\n"
    shell.run(f"%%fal_function secrets=FAL_KEY wait=true\n{keyed}")
    assert shell["keyed"]() == VALUE
    shell.run(f"%%fal_function own wait=true\n{keyed}")
    assert shell["keyed"]() != VALUE
    cli.run(["secrets", "delete", "FAL_KEY"], "fal-notebook")


def test_a_runner_whose_fal_key_is_a_secret_still_calls_apps_and_uploads(
    shell, monkeypatch
) -> None:
    monkeypatch.setenv("FAL_KEY", VALUE)
    cli.run(["secrets", "set", "FAL_KEY", "--from-env"], "fal-notebook")
    monkeypatch.delenv("FAL_KEY")
    shell.run("%%fal_function wait=true\ndef called(x: int) -> int:\n    return x + 1\n")
    shell.run(
        "%%fal_function secrets=FAL_KEY wait=true\ndef calls() -> list:\n"
        "    from fal_notebook.toolkit import File\n"
        "    return [called(1), File.from_bytes(b'x').url]\n"
    )
    answer, url = shell["calls"]()
    assert (answer, httpx.get(url).content) == (2, b"x")
    cli.run(["secrets", "delete", "FAL_KEY"], "fal-notebook")


STARTS = ("PATH", "HOME", "LD_PRELOAD", "DYLD_INSERT_LIBRARIES", "PYTHONPATH", "BASH_ENV")


@pytest.mark.parametrize(
    "name", [*STARTS, "HF_HOME", "SSL_CERT_FILE", "PORT", "CUDA_VISIBLE_DEVICES"]
)
def test_a_secret_cannot_change_how_a_runner_starts(shell, name: str) -> None:
    with pytest.raises(OptionError, match=f"'{name}' cannot be a secret's name: "):
        cli.run(["secrets", "set", name, "--from-env"], "fal-notebook")
    with pytest.raises(UsageError, match=f"{name}: .*use another name"):
        shell.run(f"%%fal_function secrets={name}\ndef f() -> int:\n    return 1\n")


@pytest.mark.parametrize("name", ["LD_SDK_KEY", "PYTHON_TOKEN", "PATHS", "MY_PATH"])
def test_other_names_are_like_any(name: str) -> None:
    check_secret_name(name)


def test_a_notebook_that_cannot_ask_names_the_other_way(gateway, monkeypatch) -> None:
    def refuse(prompt: str = "") -> str:
        raise NotImplementedError("this frontend does not support input requests")

    refuse.__module__ = "ipykernel.kernelbase"
    monkeypatch.setattr("getpass.getpass", refuse)
    monkeypatch.setattr("click.termui.hidden_prompt_func", refuse)
    with pytest.raises(Exception, match="--from-env"):
        cli.run(["secrets", "set", "ASKED_WORDS"], "fal-notebook")


def test_half_a_runners_environment_is_none(gateway, monkeypatch) -> None:
    monkeypatch.setenv("FAL_RUNNER_ID", "zz")
    sync.wait(shared_client().close())
    cli.run(["secrets", "list"], "fal-notebook")


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


SHOUTS = """
%%fal_function secrets=VAULT_WORDS serve=true wait=true
def shouts(fail: bool = False) -> int:
    import json, os, subprocess, urllib.parse
    value = os.environ["VAULT_WORDS"]
    print("plain", value)
    print(json.dumps({"inside": json.dumps({"value": value})}), repr(value))
    print(urllib.parse.quote(value), value.splitlines()[0])
    subprocess.run(["sh", "-c", 'printf "child %s\\n" "$VAULT_WORDS"'])
    if fail:
        raise ValueError(f"wrong {value}")
    return 1
"""
ODD = 'zebra "quagga" is\nokapí\\tapir'


def test_a_secret_shows_in_no_log_and_no_error(
    shell, gateway, stored, monkeypatch, eventually
) -> None:
    monkeypatch.setenv("VAULT_WORDS", ODD)
    cli.run(["secrets", "set", "VAULT_WORDS", "--from-env"], "fal-notebook")
    shell.run(SHOUTS.strip())
    with control(gateway) as api:
        assert api.post("/run/tester/shouts", json={}).status_code == 200
        told = api.post("/queue/tester/shouts", json={"fail": True}).json()
        url = told["status_url"] + "?logs=1"
        status = eventually(lambda: (got := api.get(url)).status_code == 200 and got.text)
        errors = eventually(lambda: api.get("/api/apps/tester/shouts/errors").json())
        one = api.get(f"/api/apps/tester/shouts/errors/{told['request_id']}").text
        # It still stands in lines of before.
        cli.run(["secrets", "set", "VAULT_WORDS", "--from-env"], "fal-notebook")
        logs = api.get("/api/apps/tester/shouts/logs").text
    for text in (logs, status, str(errors), one):
        assert "[secret VAULT_WORDS]" in text
        for part in ("zebra", "quagga", "okap", "tapir"):
            assert part not in text
    assert "plain [secret" in logs
    assert re.search(r"child (\[secret|\*{4})", logs)  # as it is read, or in the file already


@pytest.mark.parametrize(
    "value", [ODD, VALUE, "p4ss", "größe-ünïcode", "-----BEGIN KEY-----\nabcdefgh\n"]
)
def test_every_form_of_a_value_is_redacted(tmp_path: Path, value: str) -> None:
    store, vault = Store(tmp_path / "store.db"), Vault(tmp_path)
    redaction = Redaction(store, vault)
    assert redaction.current()(value) == value
    store.put(Secret("S", vault.encrypt(value)))
    store.put(Secret("SHORT", vault.encrypt("abc")))
    shown = (repr(value), ascii(value), str(value.encode()))
    for text in (value, json.dumps(value), json.dumps(json.dumps([value])), *shown):
        assert redaction.current()(f"({text})").count("[secret S]") == 1, text
    coded = base64.b64encode(value.encode()).decode()
    for text in ("abc and all else stays", coded):
        assert redaction.current()(text) == text
    store.delete_secret("main", "S")
    assert value not in redaction.current()(value)
    store.close()


def test_a_secret_shows_in_no_error_of_a_call(shell, stored, capsys) -> None:
    shell.run(SHOUTS.strip())
    with pytest.raises(RemoteError, match=r"ValueError: wrong \[secret VAULT_WORDS\]") as caught:
        shell["shouts"](fail=True)
    shown = "".join(traceback.format_exception(caught.value))
    assert "[secret VAULT_WORDS]" in str(caught.value.__cause__)
    assert VALUE not in shown
    shell.ip.run_cell("shouts(fail=True)")
    assert VALUE not in "".join(capsys.readouterr())


REFUSES = """
%%fal_function secrets=VAULT_WORDS serve=true wait=true
def refuses(status: int = 418, stream: bool = False):
    import os
    from fastapi import HTTPException
    value = os.environ["VAULT_WORDS"]
    error = HTTPException(status, {"told": ["http " + value]}, {"x-told": value})
    if not stream:
        raise error
    def events():
        yield 1
        raise error
    return events()
"""


def test_a_secret_shows_in_no_refusal(shell, gateway, stored) -> None:
    shell.run(REFUSES.strip())
    with control(gateway) as api:
        for status in (418, 500):
            answer = api.post("/run/tester/refuses", json={"status": status})
            assert answer.status_code == status
            assert answer.json() == {"detail": {"told": ["http [secret VAULT_WORDS]"]}}
            assert answer.headers["x-told"] == "[secret VAULT_WORDS]"
        events = api.post("/run/tester/refuses", json={"stream": True}).text
    assert "http [secret VAULT_WORDS]" in events
    assert VALUE not in events


DEPENDS = """
%%fal_function secrets=VAULT_WORDS serve=true wait=true
from typing import Annotated
from fastapi import Depends, HTTPException
def checked():
    import os
    raise HTTPException(418, "no " + os.environ["VAULT_WORDS"])
def depends(here: Annotated[int, Depends(checked)]) -> int:
    return here
"""


def test_a_secret_shows_in_no_refusal_of_a_dependency(shell, gateway, stored) -> None:
    shell.run(DEPENDS.strip())
    with control(gateway) as api:
        answer = api.post("/run/tester/depends", json={})
    assert (answer.status_code, answer.json()) == (418, {"detail": "no [secret VAULT_WORDS]"})


CHECKS = """
%%fal_function secrets=VAULT_WORDS serve=true wait=true
import os
from typing import Annotated
from fastapi import Header
from pydantic import AfterValidator, BaseModel
def checked(n: int) -> int:
    raise ValueError("not " + os.environ["VAULT_WORDS"])
Checked = Annotated[int, AfterValidator(checked)]
class Asked(BaseModel):
    n: Checked
def checks(asked: Asked{more}) -> int:
    return asked.n
"""


@pytest.mark.parametrize("more", ["", ", x_mine: Annotated[str, Header()] = ''"])
def test_a_secret_shows_in_no_answer_of_a_validator(shell, gateway, stored, more: str) -> None:
    shell.run(CHECKS.strip().format(more=more))
    with control(gateway) as api:
        answer = api.post("/run/tester/checks", json={"n": 1})
    assert answer.status_code == 422
    (problem,) = answer.json()["detail"]
    assert (problem["loc"], problem["input"]) == (["body", "n"], 1)
    assert problem["msg"] == "Value error, not [secret VAULT_WORDS]"
    assert VALUE not in answer.text


FAILS = """
%%fal_function secrets=VAULT_WORDS wait=true setup_function=up min_concurrency=1
def fails() -> int:
    import os; return os.getpid()
"""
UP = "def up():\n    import os\n    raise ValueError('wrong ' + os.environ['VAULT_WORDS'])"


def test_a_secret_shows_in_no_failed_start(shell, gateway, stored, eventually, tmp_path) -> None:
    shell.run(UP)
    with pytest.raises(UsageError) as caught:
        shell.run(FAILS.strip())
    once = UP.replace("    raise", f"    if os.path.exists('{tmp_path}/x'): raise")
    shell.run(f"{once}\n    open('{tmp_path}/x', 'w')")
    shell.run(FAILS.strip())
    with control(gateway) as api:
        psutil.Process(shell["fails"]()).kill()
        status = eventually(
            lambda: (got := api.get("/api/apps/tester/fails").json())["last_error"] and got
        )
        assert "[secret VAULT_WORDS]" in status["last_error"]
        told = [str(caught.value), str(status), api.get("/api/apps/tester/fails/runners").text]
    with contextlib.closing(sqlite3.connect(private_store())) as store:
        told += [str(row) for row in store.execute("SELECT data FROM events")]
        told += [str(row) for row in store.execute("SELECT * FROM runners")]
    told.append((settings.state_folder() / "gateway.log").read_text())
    assert [text for text in told if VALUE in text] == []


def private_store() -> Path:
    return settings.state_folder() / "store.db"


SEES = """
%%fal_server sees exposed_port=8000 secrets=VAULT_WORDS wait=true
test "$VAULT_WORDS" || exit 3; exec {python} -m http.server $PORT --bind 127.0.0.1
"""


@pytest.mark.linux  # reads /proc
def test_a_secret_stands_in_no_process_list(shell, stored, private_state) -> None:
    shell.run(SEES.strip().format(python=sys.executable))
    shell.run(SHOUTS.strip())
    shell["shouts"]()
    holding = {}
    for process in psutil.process_iter():
        for what in ("cmdline", "environ"):
            with contextlib.suppress(OSError):
                if VALUE.encode() in Path(f"/proc/{process.pid}/{what}").read_bytes():
                    holding[process.pid] = (what, process.name(), process.cmdline())
    runners = {r["id"] for name in ("sees", "shouts") for r in shell[name].runners()}
    for pid, (what, *about) in holding.items():  # the user's own server, and nobody else
        assert what == "environ", about
        assert psutil.Process(pid).environ().get("FAL_RUNNER_ID") in runners, about


def test_a_damaged_key_file_stops_a_start_and_says_what_helps(tmp_path: Path) -> None:
    (tmp_path / settings.SECRETS_KEY).write_bytes(b"x")
    with pytest.raises(FalNotebookError, match=r"secrets\.key is damaged: it holds no key; put a"):
        discovery.ensure(tmp_path)


def test_a_folder_is_no_key(tmp_path: Path) -> None:
    (tmp_path / settings.SECRETS_KEY).mkdir()
    with pytest.raises(GatewayError, match=r"secrets\.key is damaged: Is a directory; put a"):
        Vault(tmp_path).check()


def test_a_value_that_is_no_text_is_refused(monkeypatch) -> None:
    monkeypatch.setenv("BINARY", os.fsdecode(b"\xff\xfe-binary"))
    with pytest.raises(click.UsageError, match="the value of BINARY is no UTF-8 text; encode it"):
        cli.run(["secrets", "set", "BINARY", "--from-env"], "fal-notebook")


def test_a_listing_says_which_secrets_cannot_be_read() -> None:
    told = [{"name": "A", "env": "main", "set_at": 1.0, "readable": False}]
    assert "cannot be read with this secrets.key: set it again" in str(secrets_table(told))


async def test_names_of_secrets_are_listed_without_trying_them(tmp_path: Path) -> None:
    gateway = open_gateway(tmp_path)
    secrets.put(gateway, "main", "A", "a value")
    (tmp_path / settings.SECRETS_KEY).unlink()
    gateway.vault = Vault(tmp_path)
    assert [set(told) for told in secrets.list_secrets(gateway)] == [{"name", "env", "set_at"}]
    assert [told["readable"] for told in secrets.list_secrets(gateway, tried=True)] == [False]
    await close_gateway(gateway)


def test_a_secret_of_another_key_is_named(tmp_path: Path) -> None:
    stored = Vault(tmp_path).encrypt("value")
    assert Vault(tmp_path).reads(stored)
    (tmp_path / settings.SECRETS_KEY).unlink()
    assert not Vault(tmp_path).reads(stored)
    with pytest.raises(GatewayError, match=r"the secret A cannot be read with .*; set it again"):
        Vault(tmp_path).decrypt(stored, "the secret A")
