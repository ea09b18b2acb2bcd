"""The command line: the commands of ``%fal`` and a deploy, as a process of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import httpx
import pytest
from click.testing import CliRunner
from serving import deleted_after

from fal_notebook import __version__, cli
from fal_notebook.discovery import GatewayInfo
from fal_notebook.exceptions import CellError, OptionError
from fal_notebook.handle import Handle

PROGRAM = """
from fal_notebook import Handle
offset = 10

class Point:
    def __init__(self, x): self.x = x

def helper(p): return p.x + offset

def shifted(x: int) -> int:
    '''Shift it.'''
    print("shifting", x)
    return helper(Point(x))

def other(): return "other"
"""


@pytest.fixture
def program(tmp_path: Path, gateway: GatewayInfo) -> Iterator[Path]:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    with deleted_after("shifted", "my-app"):
        yield path


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "fal_notebook.cli", *arguments]
    return subprocess.run(line, capture_output=True, text=True, timeout=60)


def run(*arguments: str) -> str:
    return "\n".join(cli.as_lines(cli.run(list(arguments), "fal-notebook")))


def test_a_file_is_deployed_asked_scaled_called_and_deleted(program: Path) -> None:
    deployed = command(
        "deploy", f"{program}::shifted", "serve=true", "auth=public", "message=first try"
    )
    assert (deployed.returncode, deployed.stderr) == (0, "")
    assert "shifted: active (revision 1)" in deployed.stdout
    url = Handle("tester", "shifted").url
    assert httpx.post(url, json={"x": 1}).json() == 11
    assert "first try" in run("status", "shifted")
    assert "shifting 1" in run("logs", "shifted")
    assert "IDLE" in run("runners", "shifted")
    assert "scale" in run("scale", "shifted", "keep_alive=44")
    assert run("delete", "tester/shifted") == "tester/shifted is deleted"


def test_without_a_function_the_last_one_is_deployed(program: Path) -> None:
    deployed = command("deploy", str(program), "name=my_app")
    assert "my-app: active" in deployed.stdout
    assert Handle("tester", "my-app")() == "other"


def test_what_the_file_raises_is_its_own_traceback(tmp_path: Path, gateway) -> None:
    path = tmp_path / "broken.py"
    path.write_text("def f(): pass\n1 / 0\n")
    failed = command("deploy", str(path))
    assert failed.returncode == 1
    assert "ZeroDivisionError" in failed.stderr
    assert 'broken.py", line 2' in failed.stderr


def test_what_a_file_does_as_a_program_is_left_out(tmp_path: Path, gateway) -> None:
    path = tmp_path / "shop.py"
    path.write_text(
        "class Box:\n    x = 3\ndef my_app() -> int:\n    return Box().x\n"
        'if __name__ == "__main__":\n    raise SystemExit("it ran as a program")\n'
        'if "__main__" == __name__ and True:\n    raise SystemExit("it ran as a program")\n'
    )
    before = sys.modules["__main__"]
    assert "my-app: active" in run("deploy", str(path), "name=my_app")
    assert sys.modules["__main__"] is before
    assert Handle("tester", "my-app")() == 3
    Handle("tester", "my-app").delete()


def test_annotations_of_a_file_are_evaluated_as_python_does(tmp_path: Path) -> None:
    path = tmp_path / "typed.py"
    path.write_text("def f(x: Missing): pass\n")
    with pytest.raises(NameError, match="Missing"):
        run("deploy", str(path))


def test_a_file_is_found_below_the_users_home(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "at_home.py").write_text("def f(): pass\n1 / 0\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ZeroDivisionError):
        run("deploy", "~/at_home.py")
    with pytest.raises(CellError, match=r"~nobody-of-that-name/a\.py cannot be read"):
        run("deploy", "~nobody-of-that-name/a.py")


def test_a_failed_deploy_of_a_file_keeps_the_notes(tmp_path: Path, gateway) -> None:
    path = tmp_path / "noted.py"
    path.write_text(
        "import only_here\ncount = 0\ndef f():\n    global count\n    count += only_here.one\n"
    )
    (tmp_path / "only_here.py").write_text("one = 1\n")
    failed = command("deploy", str(path))
    assert failed.returncode == 1
    assert "note: `f` uses the module `only_here`" in failed.stderr
    assert "No module named 'only_here'" in failed.stderr


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        (["nowhere.py"], CellError, "nowhere.py cannot be read"),
        (["{program}::nobody"], CellError, "does not define `nobody`"),
        (["{program}", "keep_alives=1"], OptionError, "did you mean 'keep_alive'"),
        (["{program}", "dry_run=true"], OptionError, "dry_run is for cells"),
    ],
)
def test_a_wrong_deploy_is_one_sentence(program: Path, options, kind, words: str) -> None:
    with pytest.raises(kind, match=words):
        run("deploy", *(option.format(program=program) for option in options))


def test_refusals_are_one_line_on_stderr_with_a_status(gateway) -> None:
    unknown = command("status", "nobody")
    assert unknown.returncode == 1
    assert unknown.stderr.startswith("fal-notebook: there is no app tester/nobody")
    assert unknown.stderr.count("\n") == 1
    wrong = command("statsu")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)


def test_following_logs_ends_with_an_interrupt(program: Path) -> None:
    command("deploy", f"{program}::shifted")
    Handle("tester", "shifted")(3)
    line = [sys.executable, "-m", "fal_notebook.cli", "logs", "shifted", "-f"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as logs:
        assert logs.stdout is not None
        assert "shifting 3" in next(line for line in logs.stdout if "shifting" in line)
        os.kill(logs.pid, signal.SIGINT)
        assert logs.wait(10) == 130
        assert logs.stderr is not None
        assert logs.stderr.read() in ("", "\n")


def test_a_reader_that_has_enough_is_no_error(gateway) -> None:
    line = f"{sys.executable} -m fal_notebook.cli gateway status | head -c 1"
    reply = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    assert reply.stderr == ""


def test_a_key_is_shown_once_and_revoked(gateway) -> None:
    shown = run("keys", "create", "--alias", "friend")
    identity, secret = shown.splitlines()[0].split(":")
    assert "friend" in run("keys", "list")
    assert secret not in run("keys", "list")
    assert run("keys", "revoke", identity) == f"{identity} is revoked"


def test_the_gateways_status_has_no_token(gateway: GatewayInfo) -> None:
    shown = run("gateway", "status")
    assert gateway.url in shown
    assert gateway.token not in shown


def test_the_version_and_every_command_have_help(gateway) -> None:
    assert command("--version").stdout.strip().endswith(__version__)
    for name, found in cli.commands.commands.items():
        assert found.help, name
        assert CliRunner().invoke(cli.commands, [name, "--help"]).exit_code == 0


def test_help_brackets_what_may_be_left_out_and_nothing_else() -> None:
    shown = CliRunner().invoke(cli.commands, ["--help"]).output
    assert "promote NAME --from ENV [--to ENV]" in shown
    assert "rollback NAME [REV]" in shown
    for name in ("diff", "rollback"):
        shown = CliRunner().invoke(cli.commands, [name, "--help"]).output
        assert f"{name} [OPTIONS] NAME [REV]" in shown


def test_a_value_with_spaces_or_brackets_arrives_whole(program: Path) -> None:
    run("deploy", f"{program}::shifted", 'regions=["us-east", "us-west"]', "message=a b  c")
    options = Handle("tester", "shifted").status()["options"]
    assert (options["regions"], options["message"]) == (["us-east", "us-west"], "a b  c")
    assert json.dumps(options)


@pytest.mark.parametrize("line", ["logs a --request=", "logs a --runner=", "errors a --request="])
def test_an_empty_id_is_refused(line: str) -> None:
    with pytest.raises(click.UsageError, match="it is empty; leave the option out to see all"):
        run(*line.split())


def test_a_group_without_a_command_shows_its_help() -> None:
    assert run("keys").startswith("Usage: fal-notebook keys ")


def test_an_owner_that_is_no_name_is_refused() -> None:
    with pytest.raises(OptionError, match=r"'\.\.' cannot be the name"):
        run("logs", "../x")
