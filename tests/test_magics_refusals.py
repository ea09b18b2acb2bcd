"""``%%fal_function`` in a real shell: what is refused or fails, and how that is said."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from cells import ONE, apps, cell, plain, refusal
from IPython.core.error import UsageError

from fal_notebook.exceptions import DeployError, GatewayError
from fal_notebook.handle import Handle


def test_an_option_that_holds_a_key_is_refused_by_its_name(shell) -> None:
    key = "gsk_" + "a1B2c3D4" * 6 + "e5F6"
    assert "message" in (said := refusal(shell, cell(f"message={key}", ONE)))
    assert key not in said
    url = "git+https://me:s3cr3tT0ken99@github.com/a/b"
    assert "requirements" in refusal(shell, cell(f"requirements={url}", ONE))
    shell.run(cell(f"message={key} dry_run=true allow_secret=message", ONE))


def test_a_local_requirement_that_is_missing_is_one_sentence(shell) -> None:
    said = refusal(shell, cell("requirements=./nowhere", ONE))
    assert "./nowhere" in said
    assert "does not exist" in said


def test_a_number_is_no_requirement(shell) -> None:
    assert "requirements" in refusal(shell, cell("requirements=5", ONE))


def test_a_captured_get_ipython_is_said_to_belong_to_the_notebook(shell) -> None:
    said = refusal(shell, cell("", "def one(): return get_ipython().user_ns"))
    assert "`one` uses global `get_ipython`, which belongs to the notebook" in said
    assert "setup_function" not in said


@pytest.mark.parametrize("name", ["In", "Out", "_ih", "_oh"])
def test_the_notebooks_history_is_refused_also_through_a_helper(shell, name: str) -> None:
    shell.run(f"def helper(): return len({name})")
    said = refusal(shell, cell("", "def one(): return helper()"))
    assert f"`one` calls `helper`, which uses global `{name}`, which belongs to the" in said


def test_a_module_of_python_itself_is_refused_as_a_local_one(shell) -> None:
    said = refusal(shell, cell("local_python_modules=json", ONE))
    assert "`json`, which is part of Python; leave it out" in said


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("keep_alives=3", "unknown option 'keep_alives'; did you mean 'keep_alive'?"),
        ("keep_alive=soon", "keep_alive='soon' is not allowed: a whole number of seconds"),
        ("max_concurrency=0", "max_concurrency=0 is not allowed: a whole number from 1 to 1000"),
        ("min_concurrency=3 max_concurrency=2", "min_concurrency=3 is above max_concurrency=2"),
        ("a b", "'b' is not of the form key=value"),
        ("wait", "'wait' is an option and not the app's name; write wait=true"),
        ("keep-alive", "'keep-alive' is an option and not the app's name; write keep_alive=…"),
        ("name=a name=b", "name is given twice"),
        ("a name=b", "the name is given twice"),
        ("message='open", "is missing in"),
        ("metadata=nowhere", "the notebook has no variable 'nowhere'"),
        ("Ünïcode", "letters a to z"),
        ("a" + "b" * 63, "63"),
        ("pass_env=NOT_SET_HERE", "pass_env names NOT_SET_HERE, not set in this kernel"),
        ("python_version=3.9", "python_version=3.9 is not this kernel's"),
        ("entry=nobody", "the cell does not define `nobody`; it defines `one`"),
        ("owner=workflows", "'workflows' is a reserved name"),
    ],
)
def test_a_wrong_line_is_one_sentence_and_deploys_nothing(shell, line: str, words: str) -> None:
    said = refusal(shell, cell(line, ONE))
    assert said.startswith("%%fal_function: ")
    assert words in said
    assert "\n" not in said
    assert "one" not in apps(shell).split()


def test_an_entry_that_is_no_function_is_refused(shell) -> None:
    assert "`x` is not a function" in refusal(shell, cell("entry=x", "x = 3\n" + ONE))


def test_a_syntax_error_is_pythons_own_with_the_line_in_the_cell(shell, capsys) -> None:
    with pytest.raises(Exception, match="line 3") as caught:
        shell.run(cell("", "x = 1\ndef broken(:\n    pass\n"))
    assert type(caught.value).__name__ == "SyntaxError"
    out = plain(capsys.readouterr().out).strip()
    assert re.match(r"Cell In\[\d+\], line 3\n\s+def broken\(:\n\s+\^\nSyntaxError: ", out)
    assert ".py" not in out
    assert "broken" not in apps(shell)


def test_an_error_of_the_cell_is_pythons_own_and_leaves_the_handle(shell, capsys) -> None:
    shell.run(cell("wait=true", ONE))
    with pytest.raises(ZeroDivisionError):
        shell.run(cell("", "\n\ndef one(): return 2\n1 / 0"))
    out = plain(capsys.readouterr().out)
    assert re.search(r"Cell In\[\d+\], line 5\b", out)
    assert "1 / 0" in out
    assert "fal_notebook/magics" not in out
    assert shell["one"]() == 1


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("x = 3\n", "the cell defines no function to deploy"),
        ("", "is a cell magic, but the cell body is empty"),
        ("\n\n", "the cell defines no function to deploy"),
        ("import asyncio\nawait asyncio.sleep(0)\n" + ONE, "awaits at its top level (line 3)"),
        ("def one(): pass\ndel one", "`one` is not a function"),
    ],
)
def test_a_cell_that_cannot_be_deployed_says_why(shell, body: str, words: str) -> None:
    assert words in refusal(shell, cell("", body))


def test_a_single_percent_sign_is_pointed_out(shell) -> None:
    assert "cell magic `%%fal_function` exists" in refusal(shell, "%fal_function one")


def test_what_cannot_be_pickled_is_named_with_its_path_and_the_handle_stays(shell) -> None:
    shell.run(cell("wait=true", ONE))
    shell.run("import sqlite3\ndb = sqlite3.connect(':memory:')")
    said = refusal(shell, cell("", "def one(): return db.execute('select 1')"))
    assert "`one` uses global `db`" in said
    assert "\n" not in said
    assert shell["one"]() == 1
    shell.run("db.close()")


def test_a_secret_is_refused_by_its_variables_name_and_not_shown(shell, capsys) -> None:
    key = "sk-" + "proj-" + "a1B2" * 12
    shell.run(f"api_key = {key!r}")
    said = refusal(shell, cell("", "def ask(): return api_key"))
    assert "api_key" in said
    assert "allow_secret=api_key" in said
    captured = capsys.readouterr()
    assert key not in captured.out + captured.err


def test_the_same_name_from_another_notebook_names_the_owner_and_takeover(
    shell, monkeypatch
) -> None:
    monkeypatch.setenv("JPY_SESSION_NAME", "/work/first.ipynb")
    shell.run(cell("wait=true", ONE))
    monkeypatch.setenv("JPY_SESSION_NAME", "/work/second.ipynb")
    changed = ONE.replace("return 1", "return 2")
    said = refusal(shell, cell("", changed))
    assert "belongs to notebook /work/first.ipynb" in said
    assert "takeover=true" in said
    assert shell["one"]() == 1
    shell.run(cell("takeover=true wait=true", changed))
    assert (shell["one"](), shell["one"].status()["notebook"]) == (2, "notebook /work/second.ipynb")


def test_takeover_of_an_unchanged_cell_changes_its_notebook_only(
    shell, monkeypatch, capsys
) -> None:
    monkeypatch.setenv("JPY_SESSION_NAME", "/work/first.ipynb")
    shell.run(cell("wait=true", ONE))
    monkeypatch.setenv("JPY_SESSION_NAME", "/work/second.ipynb")
    shell.run(cell("takeover=true wait=true", ONE))
    status = shell["one"].status()
    assert (status["number"], status["notebook"]) == (1, "notebook /work/second.ipynb")
    assert "note: taken over from notebook /work/first.ipynb" in capsys.readouterr().out


def test_another_notebooks_first_deploy_is_not_superseded(shell, monkeypatch) -> None:
    monkeypatch.setenv("JPY_SESSION_NAME", "/work/first.ipynb")
    shell.run("import time\ndef load(): time.sleep(60)")
    shell.run(cell("setup_function=load", ONE))
    monkeypatch.setenv("JPY_SESSION_NAME", "/work/second.ipynb")
    assert "belongs to notebook /work/first.ipynb" in refusal(shell, cell("", ONE))


def test_a_deploy_whose_setup_fails_shows_reason_and_log_and_leaves_what_runs(
    shell, capsys
) -> None:
    shell.run(cell("wait=true", ONE))
    first, number = shell["one"], shell["one"].status()["number"]
    shell.run("def load():\n    print('<b>half way</b>')\n    raise ValueError('no weights.')")
    said = refusal(shell, cell("setup_function=load wait=true", ONE.replace("1", "2")))
    assert "one: ValueError: no weights; revision" in said
    assert "\n" not in said
    assert "| <b>half way</b>" in capsys.readouterr().out
    assert first() == 1
    assert shell["one"].status()["number"] == number
    with pytest.raises(DeployError, match="half way") as caught:
        shell["one"]()
    still = f"revision {number} still answers at {first.url}, call it as "
    assert f"{still}fal_notebook.Handle('tester', 'one')(…)" in str(caught.value)
    assert Handle("tester", "one")() == 1


def _ends_when_ready(shell, end: Path, options: str = "") -> None:
    """Deploy an app whose runner comes up and then ends by itself."""
    shell.run(f"""
import os, threading, time
def load():
    def wait():
        while not os.path.exists({str(end)!r}): time.sleep(0.01)
        os._exit(3)
    threading.Thread(target=wait).start()
""")
    shell.run(cell(f"setup_function=load wait=true {options}", ONE))
    end.touch()


def test_runners_of_an_app_that_fails_to_start_say_so(shell, capsys, eventually, tmp_path) -> None:
    _ends_when_ready(shell, tmp_path / "end", "min_concurrency=1")

    def shown() -> str:
        capsys.readouterr()
        shell.run("%fal runners one")
        return capsys.readouterr().out

    said = eventually(lambda: "CRASH" in (text := shown()) and text)
    assert re.search(r"CRASH_BACKOFF .* next try in \d+ s: the runner ended", said)


def test_an_import_error_in_the_runner_is_shown_in_the_cell(shell, tmp_path, monkeypatch) -> None:
    (tmp_path / "only_here.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    shell.run("def load():\n    import only_here\n")
    said = refusal(shell, cell("setup_function=load wait=true", ONE))
    assert "No module named 'only_here'" in said


def test_a_failed_redeploy_does_not_say_that_a_crashing_revision_answers(
    shell, eventually, tmp_path
) -> None:
    _ends_when_ready(shell, tmp_path / "end", "min_concurrency=1")
    eventually(lambda: shell["one"].status()["crash_backoff"])
    shell.run("def load():\n    raise ValueError('no weights.')")
    said = refusal(shell, cell("setup_function=load wait=true", ONE.replace("1", "2")))
    assert "still has the URL, but its runners fail to start (CRASH_BACKOFF)" in said
    assert "answers" not in said


def test_a_wrong_option_is_refused_before_the_cell_runs(shell) -> None:
    with pytest.raises(UsageError, match="keep_alive"):
        shell.run("%%fal_function keep_alives=1\nran = True\ndef f(): return 1\n")
    assert "ran" not in shell.ip.user_ns


def test_an_unchanged_cell_whose_runners_do_not_come_up_is_proven_again(
    shell, eventually, tmp_path: Path
) -> None:
    there = tmp_path / "weights"
    there.touch()
    shell.run(f"import pathlib\ndef load(): pathlib.Path({str(there)!r}).read_bytes()")
    shell.run(cell("setup_function=load wait=true keep_alive=0", ONE))
    eventually(lambda: not shell["one"].runners())
    there.unlink()
    with pytest.raises(GatewayError):
        shell["one"]()
    eventually(lambda: shell["one"].status()["crash_backoff"])
    there.touch()
    shell.run(cell("setup_function=load wait=true keep_alive=0", ONE))
    assert shell["one"]() == 1
    assert shell["one"].status()["number"] == 2
