"""Files with an App class, deployed by Python and by the command line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import deleted_after
from test_cli import command

from fal_notebook import Handle
from fal_notebook.discovery import GatewayInfo
from fal_notebook.exceptions import CellError
from fal_notebook.program import deploy_file

PROGRAM = """
import fal_notebook as fal
from pydantic import BaseModel
class Asked(BaseModel):
    n: int
class Plain:
    pass
class First(fal.App, keep_alive=33):
    app_name = "file-first"
    offset = 1
    @fal.endpoint("/add")
    def add(self, asked: Asked) -> int:
        return shift(asked.n) + self.offset
class FileSecond(First):
    app_name = "file-second"
    offset = 2
def shift(n):
    return n + 10
if __name__ == "__main__":
    raise SystemExit("it ran as a program")
"""


@pytest.fixture
def program(tmp_path: Path, gateway: GatewayInfo) -> Iterator[Path]:
    path = tmp_path / "apps.py"
    path.write_text(PROGRAM)
    with deleted_after("file-first", "file-second"):
        yield path


def test_a_class_of_a_file_is_deployed_by_the_command(program: Path) -> None:
    deployed = command("deploy", f"{program}::First", "max_concurrency=2")
    assert (deployed.returncode, deployed.stderr) == (0, "")
    assert "file-first: active (revision 1)" in deployed.stdout
    app = Handle("tester", "file-first")
    assert app["/add"](n=1) == 12
    options = app.status()["options"]
    assert (options["keep_alive"], options["max_concurrency"]) == (33, 2)
    assert options["machine_type"] == "S"


def test_without_a_name_the_last_app_is_deployed(program: Path) -> None:
    handle: Any = deploy_file(str(program), {"keep_alive": 1}).handle.wait()
    assert (handle.name, handle.add(n=1)) == ("file-second", 13)
    assert handle.status()["options"]["keep_alive"] == 1


WRONG = {
    "Plain": "`Plain` is no app; derive it from fal_notebook.App",
    "Nothing": "apps.py does not define `Nothing`; it defines `Asked`, `Plain`, ",
    "Plan": "apps.py does not define `Plan`; did you mean `Plain`?",
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_app_is_refused_in_a_sentence(program: Path, name: str) -> None:
    with pytest.raises(CellError) as refusal:
        deploy_file(f"{program}::{name}", {})
    assert WRONG[name] in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_file_of_plain_classes_has_nothing_to_deploy(tmp_path: Path) -> None:
    path = tmp_path / "plain.py"
    path.write_text("class Plain: pass")
    with pytest.raises(CellError, match="no function to deploy"):
        deploy_file(str(path), {})


def test_a_file_that_is_no_python_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text("import os\ndef f(:\n")
    with pytest.raises(CellError, match=r"bad.py\", line 2(.|\n)*invalid syntax"):
        deploy_file(str(path), {})
