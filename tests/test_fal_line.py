"""``%fal`` in a real shell: its commands, their help and their mistakes."""

from __future__ import annotations

import os
from typing import Any

import pytest
from cells import ONE, apps, cell, refusal
from IPython.core.error import UsageError

from fal_notebook import cli


def test_the_runners_of_all_apps_are_listed(shell) -> None:
    shell.run(cell("wait=true min_concurrency=1", ONE))
    shell.run(cell("wait=true min_concurrency=1", "def other(): return 1"))
    shown = repr(cli.run(["runners"], "%fal"))
    assert shown.split()[0] == "app"
    assert {"one", "other"} <= set(shown.split())


def test_an_unknown_command_names_the_nearest(shell) -> None:
    assert "did you mean 'status'" in refusal(shell, "%fal statu")


def test_fal_without_arguments_shows_its_commands(shell, capsys) -> None:
    shell.run("%fal")
    out = capsys.readouterr().out
    assert [name for name in ("status", "scale", "gateway") if name in out]


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
        "deploy NAME|FILE[::NAME] KEY=VALUE…",
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
        ("scale one min_concurrency=99 max_concurrency=1", "is above"),
        ("rollback one x", "REV is the number of a revision, as `%fal revisions NAME` shows them"),
        ("diff one 0", "REV is the number of a revision"),
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
    assert "the nearest here: classify," in refusal(shell, "%fal status clasify")


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
