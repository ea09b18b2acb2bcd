"""``%%fal_pyproject`` and ``%fal deploy NAME`` in a real IPython shell."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from IPython.core.error import UsageError
from test_completion import offered

from fal_notebook import Handle, notebook
from fal_notebook.exceptions import GatewayError

CODE = """
import fal_notebook as fal
class Painter(fal.App):
    @fal.endpoint("/")
    def paint(self, n: int) -> int:
        return n + 1
def shift(n: int) -> int:
    return n + 2
def broken():
    return 1
if True:
    from math import no_such_name
"""
APPS = """
[tool.fal.apps.pm-painter]
ref = "apps.py::Painter"
keep_alive = 7

[tool.fal.apps.pm_shift]
ref = "apps.py::shift"
"""
CELL = f"%%fal_pyproject wait=true\n{APPS}"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The notebook's folder; the kernel works elsewhere."""
    (tmp_path / "apps.py").write_text(CODE.partition("def broken")[0])
    (tmp_path / "bad.py").write_text(CODE)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("JPY_SESSION_NAME", str(tmp_path / "my.ipynb"))
    assert notebook.folder() == str(tmp_path)
    return tmp_path


def test_each_app_of_the_cell_is_bound_to_its_handle(shell, folder: Path, capsys) -> None:
    shell.run(CELL)
    assert (shell["pm_painter"].paint(n=1), shell["pm_shift"](1)) == (2, 3)
    assert (shell["pm_painter"].name, shell["pm_shift"].name) == ("pm-painter", "pm-shift")
    status = shell["pm_painter"].status()
    assert status["options"]["keep_alive"] == 7
    assert status["notebook"] == f"notebook {folder / 'my.ipynb'}"
    shown = capsys.readouterr().out
    assert "pm-painter: active (revision 1)" in shown
    assert "pm-shift: active (revision 1)" in shown


def test_an_unchanged_cell_changes_nothing_and_a_line_wins(shell, folder: Path, capsys) -> None:
    shell.run(CELL)
    shell.run(CELL)
    assert shell["pm_shift"].status()["number"] == 1
    assert capsys.readouterr().out.count("up to date") == 2
    shell.run(f"%%fal_pyproject pm-shift keep_alive=9 wait=true\n{APPS}")
    assert shell["pm_shift"].status()["options"]["keep_alive"] == 9
    assert shell["pm_painter"].status()["number"] == 1


def refusal(shell, cell: str) -> str:
    with pytest.raises(UsageError) as refused:
        shell.run(cell)
    text = str(refused.value)
    assert "\n" not in text
    assert text.startswith("%%fal_pyproject: ")
    return text.removeprefix("%%fal_pyproject: ")


def test_a_mistake_deploys_nothing_and_names_the_line_of_the_cell(shell, folder: Path) -> None:
    wrong = f"{CELL}keep_alives = 3\n"
    line = wrong.splitlines().index("keep_alives = 3") + 1
    text = refusal(shell, wrong)
    assert text.startswith(f"the cell, line {line}: [tool.fal.apps.pm_shift] has the unknown key")
    assert "pm_painter" not in shell.ip.user_ns
    assert refusal(shell, "%%fal_pyproject\n[a\n").startswith("the cell, line 2: this is no TOML")
    assert "the cell: there is no app" in refusal(shell, "%%fal_pyproject\n[tool.ruff]\n")
    assert "did you mean 'pm_shift'" in refusal(shell, f"%%fal_pyproject pm-shif\n{APPS}")
    assert "name= is for one app" in refusal(shell, f"%%fal_pyproject name=one\n{APPS}")


@pytest.mark.parametrize(
    ("ref", "instead", "words"),
    [
        ("ref", "nowhere.py", "nowhere.py cannot be read: No such file"),
        ("ref", "apps.py::Paint", "apps.py does not define `Paint`; did you mean `Painter`?"),
        ("python_entry_point", "nowhere:Painter", "there is no module 'nowhere'"),
    ],
)
def test_nothing_is_deployed_when_code_is_missing(
    shell, folder: Path, ref: str, instead: str, words: str
) -> None:
    last = f'{ref} = "{instead}"\n'.join(APPS.rsplit('ref = "apps.py::shift"\n', 1))
    text = refusal(shell, f"%%fal_pyproject wait=true\n{last}")
    assert text.startswith(f"the cell, line 8: {ref}='{instead}'")
    assert words in text
    assert "pm_painter" not in shell.ip.user_ns


def test_an_app_that_fails_as_it_is_loaded_does_not_keep_the_others(shell, folder: Path) -> None:
    wrong = CELL.replace('ref = "apps.py::Painter"', 'python_entry_point = "apps:nothing"')
    assert "apps has no function or class 'nothing'" in refusal(shell, wrong)
    assert shell["pm_shift"](1) == 3


def test_code_of_the_users_raises_its_own_error(shell, folder: Path) -> None:
    with pytest.raises(ImportError, match="no_such_name"):
        shell.run('%%fal_pyproject\n[tool.fal.apps.pm-bad]\nref = "bad.py::broken"\n')
    with pytest.raises(GatewayError):
        Handle("tester", "pm-bad").status()


def test_a_failed_app_is_told_where_it_is_waited_for(shell, folder: Path) -> None:
    (folder / "late.py").write_text(
        "import fal_notebook as fal\nclass Late(fal.App):\n    def setup(self): 1 / 0\n"
        "    @fal.endpoint('/')\n    def go(self): return 1\n"
    )
    cell = f'{CELL}[tool.fal.apps.pm-late]\nref = "late.py::Late"\n'
    assert "division by zero" in refusal(shell, cell)
    assert shell["pm_shift"](1) == 3


def test_fal_deploys_an_app_of_the_nearest_file_by_its_name(shell, folder: Path, capsys) -> None:
    (folder / "pyproject.toml").write_text(APPS)
    shell.run("where = '..'")
    shell.run("%fal deploy pm-shift keep_alive=8")
    shell.run("%fal deploy pm-shift keep_alive=8 pyproject={where}")
    assert capsys.readouterr().out.count("pm-shift: up to date") == 1
    assert shell["pm_shift"](1) == 3
    shell["pm_shift"].delete()


def test_names_of_apps_are_completed(shell, folder: Path) -> None:
    (folder / "pyproject.toml").write_text(APPS)
    assert offered(shell, "%fal deploy pm") == ["pm-painter", "pm_shift"]
    assert offered(shell, "%fal deploy pm-painter pypr") == ["pyproject="]
    assert offered(shell, "%%fal_pyproject pm", APPS) == ["pm-painter", "pm_shift"]
    assert offered(shell, "%%fal_pyproject pm-painter keep", APPS) == ["keep_alive="]
    assert offered(shell, "%%fal_pyproject pm", "\n[tool.fal\n") == []
    (folder / "pyproject.toml").write_text("[tool.fal\n")
    assert offered(shell, "%fal deploy pm") == []


def test_its_help_shows_the_form_and_the_options(shell) -> None:
    help_text = shell.ip.find_cell_magic("fal_pyproject").getdoc()
    assert "[tool.fal.apps.my-server]" in help_text
    assert "keep_alive" in help_text
    assert "Deploy the apps" in inspect.getdoc(shell.ip.find_cell_magic("fal_pyproject"))
