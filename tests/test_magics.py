"""``%%fal_function`` in a real shell: what a person sees for good input."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from cells import ONE, apps, cell, listed, refusal

import fal_notebook
from fal_notebook import cli
from fal_notebook.exceptions import DeployError
from fal_notebook.handle import Handle
from fal_notebook.options import option_help


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
    states = [line.split("  ")[0] for line in lines if line.startswith("one: ") and "(" in line]
    number = shell["one"].status()["number"]
    assert states == [f"one: deploying (revision {number})", f"one: active (revision {number})"]
    assert lines.index("one: building: environment") < lines.index("one: starting: runner")


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


def test_reset_scale_of_an_unchanged_cell_takes_back_what_was_inherited(shell) -> None:
    shell.run(cell("keep_alive=5 wait=true", ONE))
    shell.run(cell("wait=true", ONE))
    assert shell["one"].status()["options"]["keep_alive"] == 5
    for _ in range(2):
        shell.run(cell("wait=true reset_scale=true", ONE))
        status = shell["one"].status()
        assert (status["number"], status["options"]["keep_alive"]) == (3, 10)


def test_owner_and_team_name_one_owner(shell) -> None:
    said = refusal(shell, cell("owner=abc team=zed", ONE))
    assert "owner=abc and team=zed name two owners; give one" in said


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


def test_an_option_that_is_given_in_vain_leaves_a_note(shell, capsys) -> None:
    shell.run(cell("auth=public wait=true", ONE))
    assert "note: auth=public without serve=true" in capsys.readouterr().out


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


def test_the_help_of_an_app_says_its_own_defaults(shell, capsys) -> None:
    shell.run("%%fal_app?")
    out = capsys.readouterr().out
    assert [name in out for name in ("keep_alive=60 ", "machine_type='S' ")] == [True, True]


def test_what_a_handle_was_made_from_is_captured(shell) -> None:
    shell.run("offset = 5")
    shell.run(cell("wait=true", "def shifted(n): return n + offset"))
    captured = fal_notebook.capture(shell["shifted"]).captured
    assert {item.name for item in captured} >= {"shifted", "offset"}


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


def test_a_function_whose_app_another_one_takes_is_named(shell, capsys) -> None:
    for name in ("Same", "same"):
        shell.run(f"%%fal_function wait=true\ndef {name}(): return {name!r}")
    note = "note: `Same` is a handle of the app same too, and runs `same` now; give one of them"
    assert note in capsys.readouterr().out
    assert shell["Same"]() == shell["same"]() == "same"


def test_an_app_named_as_another_function_of_the_cell_says_what_it_runs(shell, capsys) -> None:
    source = "def first_one(): return 1\ndef last(): return 2\n"
    shell.run(f"%%fal_function first-one wait=true\n{source}")
    note = "note: the app first-one runs `last` and not the function `first_one`; entry= names"
    assert note in capsys.readouterr().out
    assert (shell["first_one"](), shell["last"]()) == (1, 2)
    shell.run(f"%%fal_function first-one wait=true entry=first_one\n{source}")
    assert "and not the function" not in capsys.readouterr().out
    assert shell["first_one"]() == 1


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


def test_a_comment_outside_of_the_function_makes_a_new_revision(shell) -> None:
    shell.run(cell("wait=true", ONE))
    shell.run(cell("wait=true", ONE + "# a remark\n"))
    assert shell["one"].status()["number"] == 2


def test_dry_run_prints_the_notes_too(shell, capsys) -> None:
    shell.run(cell("dry_run=true auth=public", ONE))
    assert "note: auth=public without serve=true" in capsys.readouterr().out
    shell.run(cell("dry_run=true machine_type=WHAT", ONE))
    assert "note: machine type 'WHAT' is not known here" in capsys.readouterr().out


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
