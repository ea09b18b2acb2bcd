"""Tab on the lines of our magics, in a real shell and a real kernel, whatever the gateway does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from IPython.core.completer import provisionalcompleter

from fal_notebook import cli, discovery
from fal_notebook.discovery import GatewayInfo
from fal_notebook.machines import MACHINE_TYPES
from fal_notebook.magics import gateway_names
from fal_notebook.options import SCALING, option_help

BODY = "\ndef load():\n    return 1\n\nasync def answer(table):\n    return table\n"


def offered(shell, text: str, body: str = "") -> list[str]:
    """What Tab makes of the word under the cursor, which stands where `text` has a ``|``."""
    return [item[1] for item in replacements(shell, text, body)]


def replacements(shell, text: str, body: str = "") -> list[tuple[str, str]]:
    """Pairs of what is replaced and what replaces it."""
    offset = text.index("|") if "|" in text else len(text)
    whole = text.replace("|", "") + body
    with provisionalcompleter():
        found = list(shell.ip.Completer.completions(whole, offset))
    return [(whole[item.start : item.end], item.text) for item in found]


@pytest.fixture
def app(shell) -> str:
    shell.run("%%fal_function wait=true\ndef tabbed():\n    return 1\n")
    return "tabbed"


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


# --- options --------------------------------------------------------------------------------
def test_the_first_line_offers_every_option_with_its_sign(shell) -> None:
    names = {f"{item.name}=" for item in option_help()}
    assert set(offered(shell, "%%fal_function digits ", BODY)) == names
    assert set(offered(shell, "\n%%fal_function digits |")) == names


def test_options_are_known_without_what_calls_an_app() -> None:
    """It takes longer to import than the options themselves."""
    code = "import sys, fal_notebook.magics.candidates; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"httpx", "packaging.requirements", "fal_notebook.handle"} & set(
        found.stdout.split()
    )


def test_an_option_is_completed_in_the_middle_of_the_line_and_offered_once(shell) -> None:
    line = "%%fal_function digits keep_alive=3 m| auth=public"
    found = offered(shell, line, BODY)
    assert {"max_concurrency=", "machine_type=", "metadata="} <= set(found)
    assert all(name.startswith("m") for name in found)
    assert "keep_alive=" not in offered(shell, "%%fal_function keep_alive=3 ")
    assert replacements(shell, "%%fal_function keep_al") == [("keep_al", "keep_alive=")]
    assert replacements(shell, "%%fal_function --keep_al") == [("keep_al", "keep_alive=")]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("serve=", ["true", "false"]),
        ("auth=", ["private", "public", "shared"]),
        ("auth=pu", ["public"]),
        ("kind=", ["virtualenv", "container"]),
        ("machine_type=", list(MACHINE_TYPES)),
        ("machine_type=GPU-A", ["GPU-A6000", "GPU-A100"]),
        ("machine_type='GPU-A1", ["GPU-A100'"]),
        ("machine_type='GPU-A1|'", ["GPU-A100"]),
        ('machine_type=["GPU-A100","GPU-A', ['GPU-A6000"']),
        ("machine_type=[GPU-A100, GPU-A", ["GPU-A6000"]),
        ("machine_type=GPU-A100,GPU-A", ["GPU-A6000"]),
        ("regions=us-west,us-", ["us-central", "us-east"]),
        ('skip_retry_conditions=["ti', ['timeout"']),
        ("message='two words' target=", ["local", "docker"]),
        ("entry=", ["load", "answer"]),
        ("setup_function=lo", ["load", "loader"]),
        ("metadata=", ["described"]),
        ("image=", ["built"]),
        ("allow_secret=desc", ["described"]),
        ("pass_env=PYTEST_CURRENT_T", ["PYTEST_CURRENT_TEST"]),
        ("pass_env=FAL_NOTEBOOK_OWN", []),
        ("local_python_modules=helper_", ["helper_module", "helper_package"]),
    ],
)
def test_values_are_offered(shell, tmp_path, monkeypatch, line: str, expected: list[str]) -> None:
    (tmp_path / "helper_module.py").touch()
    (tmp_path / "helper_package").mkdir()
    (tmp_path / "helper_package" / "__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    shell.run("from fal_notebook import ContainerImage\ndef loader(): ...\ndescribed = {}")
    shell.run("built = ContainerImage.from_dockerfile_str('FROM python:3.12')")
    assert offered(shell, f"%%fal_function digits {line}", BODY) == expected


def test_a_server_has_options_of_its_own(shell) -> None:
    assert offered(shell, "%%fal_server one lang=") == ["sh", "python", "dockerfile"]
    assert offered(shell, "%%fal_server one lang=d") == ["dockerfile"]
    assert offered(shell, "%%fal_server one cm") == ["cmd="]
    assert {"lang=", "cmd=", "entrypoint=", "auth="} <= set(offered(shell, "%%fal_server one "))
    assert offered(shell, "%%fal_function one cm") == []


def test_only_the_part_that_is_written_is_replaced(shell) -> None:
    line = '%%fal_function machine_type=["GPU-A100", "GPU-A'
    assert replacements(shell, line) == [("GPU-A", 'GPU-A6000"')]


def test_a_list_that_is_closed_and_a_broken_line_offer_nothing_of_ours(shell) -> None:
    for line in ('machine_type=["XS"]', "machine_type=)X", "nonsense=", "keep_alive="):
        assert "XS" not in offered(shell, f"%%fal_function {line}", BODY)


@pytest.mark.parametrize(
    "line",
    [
        "%%fal_function digits keep_alive=",
        "%%fal_function digits message=o",
        "%%fal_function digits nonsense=",
        "%%fal_function digits machine_type=)X",
        "%fal logs nobody --request ",
        "%fal logs nobody --tail ",
        "%fal status nobody ",
        "%fal nonsense ",
        "%fal keys create --alias o",
        "%fal scale digits keep_alive=",
    ],
)
def test_nothing_foreign_is_offered_where_only_we_know(shell, line: str) -> None:
    """Files and builtins would be, and jedi would think of them for seconds."""
    shell.run("open_dish = 1")
    assert offered(shell, line, BODY) == []


def test_names_of_apps_are_offered_for_the_name_of_a_cell(shell, app: str) -> None:
    assert replacements(shell, "%%fal_function tab", BODY) == [("tab", app)]
    assert {app, "auth="} <= set(offered(shell, "%%fal_function ", BODY))
    assert app not in offered(shell, "%%fal_function digits ", BODY)
    assert app not in offered(shell, "%%fal_function auth=", BODY)


def test_the_body_and_other_lines_are_completed_as_python(shell) -> None:
    shell.run("serving_dish = 1")
    assert "serving_dish" in offered(shell, f"%%fal_function digits{BODY}    serv|")
    assert "serve=" not in offered(shell, f"%%fal_function digits{BODY}    serv|")
    assert "serve=" not in offered(shell, "x = 1\n%%fal_function serv|")
    assert "serve=" not in offered(shell, "%%fal_functions serv|")
    assert "upper" in offered(shell, "%%fal_function digits\n'a'.upp|")
    assert "%%fal_function" in offered(shell, "%%fal_f")


# --- %fal -----------------------------------------------------------------------------------
def test_fal_offers_its_commands_and_theirs(shell) -> None:
    assert set(offered(shell, "%fal ")) == set(cli.commands.commands)
    assert offered(shell, "%fal gateway ") == ["start", "status", "stop"]
    assert offered(shell, "if True:\n    %fal gateway sto|\n    pass") == ["stop"]
    assert offered(shell, "shown = %fal gateway sto") == ["stop"]
    assert offered(shell, "%fal keys create --scope ") == ["API", "ADMIN"]
    assert set(offered(shell, "%fal gateway stop --k")) == {"--keep-runners"}


def test_deploy_offers_programs_and_folders_then_the_options_of_a_cell(
    shell, tmp_path, monkeypatch
) -> None:
    (tmp_path / "se_folder").mkdir()
    for name in ("model_file.py", "model_file.txt", "se_folder/inner.py", ".hidden.py"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert offered(shell, "%fal deploy model_f") == ["model_file.py"]
    assert offered(shell, "%fal deploy ") == ["model_file.py", "se_folder/"]
    assert offered(shell, "%fal deploy se") == ["se_folder/"]
    assert offered(shell, "%fal deploy se_folder/") == ["se_folder/inner.py"]
    assert offered(shell, f"%fal deploy {tmp_path}/m") == [f"{tmp_path}/model_file.py"]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert offered(shell, "%fal deploy ~/m") == ["~/model_file.py"]
    assert offered(shell, "%fal deploy model_file.py machine_type=XL") == ["XL"]
    assert offered(shell, "%fal deploy digits pyp") == ["pyproject="]


def test_scale_offers_what_may_change_while_an_app_runs(shell) -> None:
    assert set(offered(shell, "%fal scale one ")) == {f"{name}=" for name in SCALING}
    assert set(offered(shell, "%fal scale one keep_alive=3 min")) == {"min_concurrency="}


@pytest.mark.parametrize("command", ["status", "logs", "scale", "delete", "runners", "cancel"])
def test_names_of_apps_are_offered(shell, app: str, command: str) -> None:
    assert replacements(shell, f"%fal {command} tab") == [("tab", app)]
    assert app not in offered(shell, f"%fal {command} {app} ")


def test_values_of_log_options_are_offered(shell, app: str, eventually) -> None:
    assert offered(shell, f"%fal logs {app} --level ") == [
        *("debug", "info", "warning", "error", "critical")
    ]
    assert offered(shell, f"%fal logs {app} --level=w") == ["warning"]
    (runner,) = shell[app].runners()
    assert offered(shell, f"%fal logs {app} --runner ") == [runner["id"]]
    assert offered(shell, f"%fal logs tester/{app} --runner {runner['id'][:3]}") == [runner["id"]]
    shell.run("%%fal_function wait=true\ndef tabbed():\n    return 1 / 0\n")
    with pytest.raises(ZeroDivisionError):
        shell[app]()
    (error,) = eventually(shell[app].errors)
    eventually(lambda: offered(shell, f"%fal errors {app} --request ") == [error["request"]])
    assert offered(shell, f"%fal logs {app} --request=") == [error["request"]]


def test_an_option_that_takes_a_value_is_no_name(shell, app: str) -> None:
    assert offered(shell, "%fal logs --tail 3 tab") == [app]
    assert offered(shell, "%fal logs -f tab") == [app]


def test_environments_and_revisions_are_offered(shell, app: str) -> None:
    shell.run("%fal env create tab-env")
    try:
        assert offered(shell, "%fal env delete tab") == ["tab-env"]
        assert offered(shell, "%fal secrets set WORD --env tab") == ["tab-env"]
        assert offered(shell, f"%fal promote {app} --from tab") == ["tab-env"]
        assert offered(shell, "%%fal_function env=tab", BODY) == ["tab-env"]
        assert offered(shell, f"%fal rollback {app} ") == ["1"]
        assert offered(shell, f"%fal diff {app} ") == ["1"]
    finally:
        shell.run("%fal env delete tab-env")


def test_names_of_secrets_are_offered_to_cells_and_commands(shell, gateway) -> None:
    shell.ip.reset(new_session=True)
    os.environ["TAB_KEY"] = "a value"
    try:
        shell.run("%fal secrets set TAB_KEY --from-env")
        assert offered(shell, "%fal secrets delete TAB") == ["TAB_KEY"]
        assert offered(shell, "%%fal_function secrets=[TAB", BODY) == ["TAB_KEY"]
    finally:
        del os.environ["TAB_KEY"]
        shell.run("%fal secrets delete TAB_KEY")


# --- a gateway that is down, hangs or is busy -----------------------------------------------
def test_a_gateway_that_is_down_is_not_started_and_nothing_is_said(
    shell, tmp_path: Path, monkeypatch, capfd, caplog
) -> None:
    monkeypatch.setenv("FAL_NOTEBOOK_STATE", str(tmp_path))
    assert "tabbed" not in offered(shell, "%fal status tab")
    assert discovery.find(tmp_path) is None
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


@pytest.mark.parametrize("content", ["", "{", "[]", '{"url": 3}'])
def test_a_broken_file_of_the_gateway_is_none(
    shell, tmp_path, monkeypatch, capfd, content: str
) -> None:
    discovery.info_file(tmp_path).write_text(content)
    monkeypatch.setenv("FAL_NOTEBOOK_STATE", str(tmp_path))
    assert "tabbed" not in offered(shell, "%fal status tab")
    assert capfd.readouterr() == ("", "")


def test_a_gateway_that_hangs_delays_nobody_and_is_waited_for_once(
    shell, gateway: GatewayInfo, capfd, caplog
) -> None:
    with stopped(gateway.pid):
        offered(shell, "%fal status tab")
        asking = threading.active_count()
        for _ in range(5):
            offered(shell, "%fal status tab")
        assert threading.active_count() == asking
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


def test_names_known_before_are_still_offered_while_the_gateway_hangs(
    shell, app: str, gateway: GatewayInfo, eventually
) -> None:
    names = gateway_names.GatewayNames(fresh=0.0)
    assert app in names.apps()
    with stopped(gateway.pid):
        assert app in names.apps()
        assert gateway_names.THREAD in {thread.name for thread in threading.enumerate()}
    eventually(lambda: app in names.apps())


def test_names_come_from_a_gateway_that_is_busy(
    shell, app: str, gateway: GatewayInfo, eventually
) -> None:
    enough = threading.Event()

    def load() -> None:
        while not enough.is_set():
            discovery.ask(gateway, "/api/apps")

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    try:
        eventually(lambda: offered(shell, "%fal status tab") == [app])
    finally:
        enough.set()
        for thread in threads:
            thread.join()


def test_a_setting_that_is_wrong_is_no_error_of_tab(shell, monkeypatch, capfd) -> None:
    monkeypatch.setenv("FAL_NOTEBOOK_STATE", "/dev/null/no/folder")
    offered(shell, "%fal status tab")
    assert capfd.readouterr() == ("", "")
