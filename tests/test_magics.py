"""The magics in a real shell: what a person sees for good and for bad input."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from IPython.core.error import UsageError

from fal_notebook import cli, sync
from fal_notebook.exceptions import DeployError
from fal_notebook.handle import Handle, shared_client
from fal_notebook.options import option_help


def cell(line: str, body: str) -> str:
    return f"%%fal_function {line}\n{textwrap.dedent(body)}"


ONE = "def one() -> int:\n    return 1\n"


def refusal(shell: Any, source: str) -> str:
    with pytest.raises(UsageError) as caught:
        shell.run(source)
    return str(caught.value)


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[\d;]*m", "", text)


def listed(shell: Any) -> list[dict[str, Any]]:
    return sync.wait(shared_client().apps())


def apps(shell: Any) -> str:
    return repr(cli.run(["status"], "%fal"))


# --- good input -----------------------------------------------------------------------------
def test_the_magic_binds_a_handle_at_once_and_a_call_waits_for_the_deploy(shell) -> None:
    shell.run(cell("", "def twice(x): return 2 * x"))
    assert isinstance(shell["twice"], Handle)
    assert shell["twice"](4) == 8


def test_a_given_name_is_the_apps_and_the_function_keeps_its_own(shell) -> None:
    shell.run(cell("my_App wait=true", "def under_score(): return 'here'"))
    assert shell["under_score"].url.endswith("/run/tester/my-app")
    assert shell["under_score"]() == "here"


def test_entry_chooses_a_function_and_the_others_stay_plain(shell) -> None:
    shell.run(cell("entry=first wait=true", "def first(): return last()\ndef last(): return 'l'"))
    assert shell["first"]() == "l"
    assert not isinstance(shell["last"], Handle)


def test_an_entry_without_a_name_of_its_own_takes_that_of_its_variable(shell) -> None:
    body = "import functools\ndef add(a, b): return a + b\nplus_two = functools.partial(add, 2)"
    shell.run(cell("entry=plus_two wait=true", body))
    assert (shell["plus_two"].name, shell["plus_two"](3)) == ("plus-two", 5)


def test_the_value_of_a_cells_last_expression_is_shown(shell, capsys) -> None:
    shell.run(cell("", ONE + "6 * 7"))
    assert "42" in capsys.readouterr().out


def test_a_terminal_prints_the_deploy_when_accepted_and_when_it_ended(shell, capsys) -> None:
    shell.run(cell("wait=true", ONE))
    lines = capsys.readouterr().out.splitlines()
    states = [line.split("  ")[0] for line in lines if line.startswith("one: ")]
    number = shell["one"].status()["number"]
    assert states == [f"one: deploying (revision {number})", f"one: active (revision {number})"]


def test_running_a_cell_again_is_up_to_date_and_keeps_what_scale_changed(shell, capsys) -> None:
    shell.run(cell("keep_alive=5 wait=true", ONE))
    shell.run("%fal scale one keep_alive=77 min_concurrency=1")
    capsys.readouterr()
    shell.run(cell("keep_alive=5 wait=true", ONE))
    assert capsys.readouterr().out.count("one: up to date") == 1
    options = shell["one"].status()["options"]
    assert (options["keep_alive"], options["min_concurrency"]) == (77, 1)


def test_reset_scale_takes_scaling_from_the_cell_even_when_up_to_date(shell) -> None:
    shell.run(cell("keep_alive=5 wait=true", ONE))
    shell.run("%fal scale one keep_alive=77")
    shell.run(cell("keep_alive=5 wait=true reset_scale=true", ONE))
    assert shell["one"].status()["options"]["keep_alive"] == 5


def test_a_changed_cell_inherits_scaling_and_says_so(shell, capsys) -> None:
    shell.run(cell("wait=true", ONE))
    shell.run("%fal scale one keep_alive=33")
    capsys.readouterr()
    shell.run(cell("wait=true", ONE.replace("return 1", "return 11")))
    assert "inherited keep_alive=33" in capsys.readouterr().out
    assert shell["one"].status()["options"]["keep_alive"] == 33


def test_an_option_given_in_the_cell_wins_over_the_inherited_one(shell) -> None:
    shell.run(cell("keep_alive=9 wait=true", ONE))
    shell.run(cell("keep_alive=4 wait=true", ONE.replace("return 1", "return 11")))
    assert shell["one"].status()["options"]["keep_alive"] == 4


def test_an_inherited_option_that_contradicts_the_cell_is_named_as_inherited(shell) -> None:
    shell.run(cell("min_concurrency=2 max_concurrency=2 wait=true", ONE))
    said = refusal(shell, cell("max_concurrency=1", ONE.replace("1", "2")))
    assert "min_concurrency=2 is above max_concurrency=1" in said
    assert "min_concurrency is inherited" in said
    assert "reset_scale=true" in said


def test_dry_run_lists_what_is_captured_and_deploys_nothing(shell, capsys) -> None:
    shell.run("weights = list(range(100))")
    shell.run(cell("dry_run=true", "def scored(i): return weights[i]"))
    out = capsys.readouterr().out
    assert [word for word in ("scored", "function", "weights", "list", "bytes") if word in out] == [
        "scored",
        "function",
        "weights",
        "list",
        "bytes",
    ]
    assert not isinstance(shell["scored"], Handle)
    assert "scored" not in apps(shell)


def test_dry_run_shows_what_would_be_inherited(shell, capsys) -> None:
    shell.run(cell("wait=true", ONE))
    shell.run("%fal scale one keep_alive=33 max_concurrency=2")
    capsys.readouterr()
    shell.run(cell("dry_run=true max_concurrency=3", ONE))
    assert "inherited keep_alive=33 (reset_scale=true resets)" in capsys.readouterr().out
    shell.run(cell("dry_run=true reset_scale=true", ONE))
    assert "inherited" not in capsys.readouterr().out


def test_dry_run_leaves_the_handle_of_what_runs(shell) -> None:
    shell.run(cell("wait=true", ONE))
    shell.run(cell("dry_run=true", ONE.replace("1", "2")))
    assert shell["one"]() == 1


def test_an_option_without_effect_yet_leaves_a_note(shell, capsys) -> None:
    shell.run(cell("regions=us-east wait=true", ONE))
    assert "note: regions is stored; it takes effect in a later release" in capsys.readouterr().out


def test_pass_env_and_message_reach_runner_and_revision(shell, monkeypatch) -> None:
    monkeypatch.setenv("GREETING", "hello there")
    body = "import os\ndef greet(): return os.environ['GREETING']"
    shell.run(cell("pass_env=GREETING message='first try' wait=true", body))
    assert shell["greet"]() == "hello there"
    assert shell["greet"].status()["options"]["message"] == "first try"


def test_metadata_openapi_wins_over_the_derived_one(shell) -> None:
    shell.run("spec = {'openapi': {'openapi': '3.1.0', 'paths': {'/mine': {}}}}")
    shell.run(cell("metadata=spec wait=true", ONE))
    assert list(shell["one"].openapi()["paths"]) == ["/mine"]


def test_setup_function_is_a_variable_of_the_notebook(shell) -> None:
    shell.run("def load(): return {'a': 1}")
    shell.run(cell("setup_function=load wait=true", "def look(table, key): return table[key]"))
    assert shell["look"]("a") == 1
    assert shell["look"].status()["options"]["setup_function"] == "load"
    shown = repr(cli.run(["status", "look"], "%fal"))
    assert re.search(r"^setup_function +load +cell$", shown, re.MULTILINE)


def test_without_a_setup_function_none_is_shown(shell) -> None:
    shell.run(cell("wait=true", ONE))
    assert shell["one"].status()["options"]["setup_function"] is None


def test_help_prints_every_option_with_its_default(shell, capsys) -> None:
    shell.run("%%fal_function?")
    out = capsys.readouterr().out
    missing = [item.name for item in option_help() if f"{item.name}={item.default}" not in out]
    assert missing == []


def test_a_cell_run_again_while_its_deploy_goes_on_joins_it(shell) -> None:
    shell.run("import time\ndef load(): time.sleep(0.5)")
    shell.run(cell("setup_function=load", ONE))
    shell.run(cell("setup_function=load wait=true", ONE))
    assert shell["one"].status()["number"] == 1


def test_a_changed_cell_cancels_the_deploy_before_it_and_the_newest_wins(shell) -> None:
    shell.run("import time\ndef load(): time.sleep(60)")
    shell.run(cell("setup_function=load", ONE))
    old = shell["one"]
    shell.run(cell("wait=true", ONE.replace("return 1", "return 2")))
    assert shell["one"]() == 2
    with pytest.raises(DeployError, match="revision 2 took its place"):
        old()


def test_going_back_to_the_running_cell_cancels_the_changed_one(shell) -> None:
    shell.run("import time\ndef load(): time.sleep(60)")
    shell.run(cell("wait=true", ONE))
    shell.run(cell("setup_function=load", ONE.replace("return 1", "return 2")))
    changed = shell["one"]
    shell.run(cell("wait=true", ONE))
    assert shell["one"]() == 1
    with pytest.raises(DeployError, match="revision 1 was deployed again"):
        changed()


def test_cancel_ends_a_deploy_and_leaves_what_runs(shell) -> None:
    shell.run("import time\ndef load(): time.sleep(60)")
    shell.run(cell("wait=true", ONE))
    shell.run(cell("setup_function=load", ONE.replace("return 1", "return 2")))
    shell.run("%fal cancel one")
    with pytest.raises(DeployError, match="the deploy was cancelled"):
        shell["one"]()
    assert shell["one"].status()["number"] == 1


def test_deleting_during_the_first_deploy_cancels_it(shell) -> None:
    shell.run("import time\ndef load(): time.sleep(60)")
    shell.run(cell("setup_function=load", ONE))
    shell["one"].delete()
    with pytest.raises(DeployError, match="the app was deleted"):
        shell["one"]()


def test_a_first_deploy_is_shown_as_deploying(shell) -> None:
    shell.run("import time\ndef load(): time.sleep(60)")
    shell.run(cell("setup_function=load", ONE))
    for seen in (shell["one"].status(), next(a for a in listed(shell) if a["name"] == "one")):
        assert (seen["deploying"], seen["number"], seen["runners"]) == (1, 1, 1)
        assert seen["notebook"].startswith("a session in")
        assert seen["step"].startswith("starting")
    assert "deploying revision 1" in apps(shell)
    shown = repr(cli.run(["status", "one"], "%fal"))
    assert "deploying revision 1" in shown
    assert "starting" in shown
    assert repr(shell["one"]) == "<fal app tester/one (deploying)>"
    assert len(shell["one"].runners()) == 1


def test_a_first_deploy_shows_the_most_runners_that_will_be_in_force(shell) -> None:
    gate = "import time, os\ndef load():\n    while not os.path.exists({!r}): time.sleep(0.02)"
    path = os.path.join(os.environ["FAL_NOTEBOOK_STATE"], "gate")
    shell.run(gate.format(path))
    shell.run(cell("setup_function=load", ONE))
    before = shell["one"].status()
    Path(path).touch()
    shell["one"].wait()
    os.unlink(path)
    assert before["deploying"] == 1
    assert before["options"] == shell["one"].status()["options"]


def test_the_runners_of_all_apps_are_listed(shell) -> None:
    shell.run(cell("wait=true min_concurrency=1", ONE))
    shell.run(cell("wait=true min_concurrency=1", "def other(): return 1"))
    shown = repr(cli.run(["runners"], "%fal"))
    assert shown.split()[0] == "app"
    assert {"one", "other"} <= set(shown.split())


def test_a_comment_outside_of_the_function_makes_a_new_revision(shell) -> None:
    shell.run(cell("wait=true", ONE))
    shell.run(cell("wait=true", ONE + "# a remark\n"))
    assert shell["one"].status()["number"] == 2


def test_dry_run_prints_the_notes_too(shell, capsys) -> None:
    shell.run(cell("dry_run=true regions=us-east", ONE))
    assert "note: regions is stored; it takes effect" in capsys.readouterr().out
    shell.run(cell("dry_run=true machine_type=WHAT", ONE))
    assert "note: machine type 'WHAT' is not known here" in capsys.readouterr().out


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


def test_an_unknown_command_names_the_nearest(shell) -> None:
    assert "did you mean 'status'" in refusal(shell, "%fal statu")


# --- bad input ------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("keep_alives=3", "unknown option 'keep_alives'; did you mean 'keep_alive'?"),
        ("keep_alive=soon", "keep_alive='soon' is not allowed: a whole number of seconds"),
        ("max_concurrency=0", "max_concurrency=0 is not allowed: a whole number, 1 or more"),
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


def test_runners_of_an_app_that_fails_to_start_say_so(shell, capsys, eventually) -> None:
    shell.run("import os, threading\ndef load(): threading.Timer(0.1, os._exit, (3,)).start()")
    shell.run(cell("setup_function=load wait=true", ONE))

    def shown() -> str:
        capsys.readouterr()
        shell.run("%fal runners one")
        return capsys.readouterr().out

    said = eventually(lambda: (text := shown()).startswith("no runners: CRASH") and text)
    assert re.match(r"no runners: CRASH_BACKOFF, next try in \d+ s: the runner ended by", said)


def test_an_import_error_in_the_runner_is_shown_in_the_cell(shell, tmp_path, monkeypatch) -> None:
    (tmp_path / "only_here.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    shell.run("def load():\n    import only_here\n")
    said = refusal(shell, cell("setup_function=load wait=true", ONE))
    assert "No module named 'only_here'" in said


# --- %fal -----------------------------------------------------------------------------------
def test_fal_without_arguments_shows_its_commands(shell, capsys) -> None:
    shell.run("%fal")
    out = capsys.readouterr().out
    assert [name for name in ("status", "scale", "gateway") if name in out]


def test_a_failed_redeploy_does_not_say_that_a_crashing_revision_answers(shell, eventually) -> None:
    shell.run("import os, threading\ndef load(): threading.Timer(0.1, os._exit, (3,)).start()")
    shell.run(cell("setup_function=load wait=true min_concurrency=1", ONE))
    eventually(lambda: shell["one"].status()["crash_backoff"])
    shell.run("def load():\n    raise ValueError('no weights.')")
    said = refusal(shell, cell("setup_function=load wait=true", ONE.replace("1", "2")))
    assert "still has the URL, but its runners fail to start (CRASH_BACKOFF)" in said
    assert "answers" not in said


def test_a_question_mark_explains_a_command(shell, capsys) -> None:
    for source in ("%fal scale?", "\n%fal scale digits ?", "%fal scale??\n"):
        shell.run(source)
        assert "Usage: %fal scale" in capsys.readouterr().out
    shell.run("%fal?")
    assert "scale NAME KEY=VALUE" in capsys.readouterr().out


@pytest.mark.parametrize("source", ["%fal?", "%fal? ", "%fal ?", "%fal", "%fal --help"])
def test_help_lists_every_command_with_its_options(shell, capsys, source: str) -> None:
    shell.run(source)
    out = capsys.readouterr().out
    for usage in (
        "errors NAME [--request ID]",
        "gateway stop [--keep-runners]",
        "keys create [--scope API|ADMIN] [--alias TEXT]",
        "logs NAME [-f] [--runner ID] [--request ID] [--level LEVEL] [--tail N]",
        "status [NAME]",
        "deploy FILE[::NAME] KEY=VALUE…",
    ):
        assert usage in out


def test_a_blank_behind_the_question_mark_does_no_harm(shell, capsys) -> None:
    shell.run("%%fal_function? ")
    assert "keep_alive=10" in capsys.readouterr().out


def test_variables_are_put_into_the_lines_of_fal(shell, capsys, tmp_path) -> None:
    (tmp_path / "program.py").write_text("def one(): return 1\n")
    shell.run(f"path, name, kept = {str(tmp_path / 'program.py')!r}, 'one', 33")
    shell.run("types, note = ['XS', 'S'], 'two words $5'")
    shell.run("%fal deploy {path}::one message={note} machine_type=$types")
    shell.run("%fal status $name")
    out = capsys.readouterr().out
    assert "two words $5" in out
    assert "['XS', 'S']" in out
    shell.run("%fal scale {name} keep_alive={kept}")
    assert "33" in capsys.readouterr().out
    assert "has no variable 'nothing'" in refusal(shell, "%fal status {nothing}")
    shell.run("%fal delete $name")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("nonsense", "there is no command 'nonsense'; there are "),
        ("gateway bogus", "there is no command 'bogus'; there are start, status, stop"),
        ("scale one nonsense=2", "request_start_timeout, request_timeout, scaling_delay"),
        ("status 'one", "No closing quotation"),
        ("status nobody", "there is no app tester/nobody"),
        ("status 'a b'", "cannot be the name of an app"),
        ("scale one keep_alives=3", "unknown option 'keep_alives'; did you mean 'keep_alive'?"),
        ("scale one keep_alive=-3", "keep_alive=-3 is not allowed"),
        ("scale one serve=true", "serve cannot be changed while the app runs"),
        ("scale one keep_alive", "expected key=value"),
        ("scale one", "name at least one option"),
        ("scale one min_concurrency=9999 max_concurrency=1", "is above"),
        ("delete nobody", "there is no app tester/nobody"),
        ("cancel one", "no deploy of tester/one is under way"),
        ("logs nobody", "there is no app tester/nobody"),
        ("logs", "Missing argument 'NAME'"),
        ("keys revoke nothing", "nothing"),
        ("logs one --tail many", "'many' is not a valid integer"),
        ("logs one --tail -3", "Invalid value for '--tail': -3 is not in the range"),
    ],
)
def test_a_wrong_command_is_one_sentence(shell, line: str, words: str) -> None:
    shell.run(cell("wait=true", ONE))
    said = refusal(shell, f"%fal {line}")
    assert words in said
    assert "\n" not in said


def test_an_unknown_app_is_answered_with_the_nearest_name(shell) -> None:
    shell.run(cell("wait=true", "def classify(): return 1"))
    shell.run(cell("wait=true", ONE))
    assert "the nearest here: classify, one" in refusal(shell, "%fal status clasify")


def test_commands_show_an_app_its_runners_and_its_logs(shell, capsys) -> None:
    shell.run(cell("wait=true", "def loud():\n    print('I was here')"))
    shell["loud"]()
    shell.run("%fal status")
    shell.run("%fal status loud")
    shell.run("%fal runners loud")
    shell.run("%fal logs loud")
    out = capsys.readouterr().out
    missing = [word for word in ("max_multiplexing", "IDLE", "I was here") if word not in out]
    assert missing == []
    assert shell["loud"].url in out


def test_delete_removes_the_app(shell, capsys) -> None:
    shell.run(cell("wait=true", ONE))
    shell.run("%fal delete one")
    assert "tester/one is deleted" in capsys.readouterr().out
    assert "one" not in apps(shell).split()


def test_no_output_shows_the_owners_token(shell, gateway, capsys) -> None:
    shell.run(cell("wait=true", ONE))
    for line in ("%fal gateway status", "%fal status one", "%fal keys list", "%fal gateway start"):
        shell.run(line)
    captured = capsys.readouterr()
    assert gateway.token not in captured.out + captured.err + repr(gateway)


# --- the extension --------------------------------------------------------------------------
@pytest.mark.parametrize(
    "source", ["import fal", "from fal.toolkit import Image", ONE + "import fal"]
)
def test_any_cell_is_told_in_one_sentence_that_the_sdk_is_missing(
    shell: Any, capsys: pytest.CaptureFixture[str], source: str
) -> None:
    said = (
        "ModuleNotFoundError: fal's own SDK is not installed here; "
        "write `import fal_notebook as fal`, or install it with `%pip install fal`"
    )
    with pytest.raises(ModuleNotFoundError):
        shell.run(source)
    assert plain("".join(capsys.readouterr())).strip() == said
    with pytest.raises(UsageError, match="fal's own SDK is not installed here"):
        shell.run(cell("", source + "\n" + ONE))


def test_of_any_other_module_the_ordinary_traceback_is_shown(
    shell: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = []
    for load in ("reload_ext", "unload_ext"):
        shell.ip.run_line_magic(load, "fal_notebook")
        with pytest.raises(ModuleNotFoundError):
            shell.run("1 + 1\nimport nothing_here")
        shown.append(re.sub(r"In\[\d+\]", "In[]", plain("".join(capsys.readouterr()))))
    assert shown[0] == shown[1]
    assert "----> 2 import nothing_here" in shown[0]


def test_the_extension_loads_twice_unloads_and_loads_again(shell) -> None:
    shell.run("%load_ext fal_notebook")
    shell.run("%unload_ext fal_notebook")
    assert "not found" in refusal(shell, "%fal status")
    shell.run("%load_ext fal_notebook")
    shell.run(cell("wait=true", ONE))
    assert shell["one"]() == 1


def test_loading_it_by_the_configuration_and_by_hand_is_loading_it_once(shell, capsys) -> None:
    shell.run("%unload_ext fal_notebook")
    shell.run("%load_ext fal_notebook.magics")
    shell.run("%load_ext fal_notebook")
    assert capsys.readouterr().out == ""
    ours = [m for m in shell.ip.Completer.custom_matchers if "fal_notebook" in m.__module__]
    assert len(ours) == 1
    shell.run("%unload_ext fal_notebook.magics")
    assert "not found" in refusal(shell, "%fal status")
    shell.run("%load_ext fal_notebook.magics")


def test_loading_imports_nothing_of_weight() -> None:
    heavy = ("httpx", "pydantic", "click", "cloudpickle", "fal_notebook.client")
    script = (
        "from IPython.core.interactiveshell import InteractiveShell as S; import sys\n"
        "before = set(sys.modules); S.instance().run_line_magic('load_ext', 'fal_notebook')\n"
        f"print(sorted((set(sys.modules) - before) & set({heavy})))"
    )
    assert subprocess.check_output([sys.executable, "-c", script], text=True) == "[]\n"


def test_a_folder_change_does_not_make_it_another_notebook(shell, tmp_path) -> None:
    before = os.getcwd()
    shell.run(cell("wait=true", ONE))
    try:
        os.chdir(tmp_path)
        shell.run(cell("wait=true", ONE.replace("return 1", "return 2")))
    finally:
        os.chdir(before)
    assert shell["one"]() == 2


def test_setup_function_may_be_defined_in_the_cell_itself(shell) -> None:
    cell = (
        "%%fal_function setup_function=load wait=true\n"
        "def load(): return {number}\n"
        "def added(m, x: int) -> int: return m + x\n"
    )
    shell.run(cell.format(number=7))
    assert shell["added"](1) == 8
    shell.run(cell.format(number=8))
    assert shell["added"](1) == 9
    number = shell["added"].status()["number"]
    shell.run(cell.format(number=8))
    assert shell["added"].status()["number"] == number


def test_a_wrong_option_is_refused_before_the_cell_runs(shell) -> None:
    with pytest.raises(UsageError, match="keep_alive"):
        shell.run("%%fal_function keep_alives=1\nran = True\ndef f(): return 1\n")
    assert "ran" not in shell.ip.user_ns


def test_the_gateways_traffic_is_not_in_what_a_notebook_logs(shell, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    shell.run("%%fal_function wait=true\ndef quiet() -> int:\n    return 1\n")
    assert shell["quiet"]() == 1
    assert [r for r in caplog.records if r.name.startswith(("httpx", "httpcore"))] == []


def test_a_kernel_chooses_where_its_cells_deploy_to(
    shell: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAL_NOTEBOOK_TARGET", "local")
    shell.run("%fal target docker")
    assert os.environ["FAL_NOTEBOOK_TARGET"] == "docker"
    shell.run("%fal target")
    assert "cells deploy to docker" in capsys.readouterr().out
    with pytest.raises(UsageError, match="moon"):
        shell.run("%fal target moon")
