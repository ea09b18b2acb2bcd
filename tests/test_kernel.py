"""The magics in a real Jupyter kernel: outputs that follow a deploy, errors, interrupts."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
import pytest
from filelock import FileLock
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from serving import deleted_after, eventually

from fal_notebook.discovery import GatewayInfo
from fal_notebook.handle import Handle

ONE = "def one():\n    return 1\n"
SLOW = "def load():\n    import time; time.sleep({})\n"

FILE = """
import fal_notebook as fal
def load(): {}
@fal.function(setup_function=load)
def one(): return 1
"""


class Notebook:
    """A notebook whose cells are run one by one in a kernel of its own."""

    def __init__(self) -> None:
        self._client = NotebookClient(nbformat.v4.new_notebook(), timeout=30)

    @contextmanager
    def started(self) -> Iterator[Notebook]:
        with self._client.setup_kernel(stderr=subprocess.DEVNULL):
            self.run("%load_ext fal_notebook\nimport os")
            self.pid = int(text(self.run("os.getpid()")))
            yield self

    def run(self, source: str) -> Any:
        """Run a new cell and return it; a cell that fails raises CellExecutionError."""
        self._client.nb.cells.append(nbformat.v4.new_code_cell(source))
        return self._client.execute_cell(self._client.nb.cells[-1], len(self._client.nb.cells) - 1)

    def attended(self) -> None:
        """Let cells believe that somebody sits there, as JupyterLab does."""
        self._client.kc.allow_stdin = True

    @property
    def last(self) -> Any:
        return self._client.nb.cells[-1]

    @contextmanager
    def interrupted_after(self, seconds: float) -> Iterator[None]:
        timer = threading.Timer(seconds, os.kill, (self.pid, signal.SIGINT))
        timer.start()
        yield
        timer.join()


def text(cell: Any) -> str:
    """Everything that a cell shows, as plain text."""
    parts = [o.get("text") or o.get("data", {}).get("text/plain", "") for o in cell.outputs]
    return "\n".join(parts)


@pytest.fixture(scope="module")
def kernel(gateway: GatewayInfo) -> Iterator[Notebook]:
    with Notebook().started() as notebook:
        yield notebook


@pytest.fixture
def notebook(kernel: Notebook) -> Iterator[Notebook]:
    with deleted_after("one"):
        yield kernel


def test_a_waiting_cell_has_one_output_which_ends_active(notebook: Notebook) -> None:
    cell = notebook.run(f"%%fal_function wait=true\n{ONE}")
    assert [output.output_type for output in cell.outputs] == ["display_data"]
    data = cell.outputs[0].data
    assert "one: active" in data["text/plain"]
    assert ">active</span>" in data["text/html"]
    assert text(notebook.run("one()")) == "1"


def test_the_output_of_an_earlier_cell_follows_its_deploy(notebook: Notebook) -> None:
    notebook.run(SLOW.format(0.3))
    cell = notebook.run(f"%%fal_function setup_function=load\n{ONE}")
    assert "one: deploying" in text(cell)
    notebook.run("one.wait()")
    assert "one: active" in text(cell)
    assert len(cell.outputs) == 1


def test_a_failed_waiting_deploy_fails_its_cell_and_shows_reason_and_log(
    notebook: Notebook,
) -> None:
    notebook.run(
        "def load():\n    print('<script>here</script>')\n    raise ValueError('<b>no</b>')"
    )
    with pytest.raises(CellExecutionError):
        notebook.run(f"%%fal_function setup_function=load wait=true\n{ONE}")
    shown = notebook.last.outputs[0].data
    assert "ValueError: <b>no</b>" in shown["text/plain"]
    assert "<script>here</script>" in shown["text/plain"]
    assert "<script>" not in shown["text/html"]
    assert "<b>no</b>" not in shown["text/html"]
    assert "&lt;script&gt;here" in shown["text/html"]


def test_a_failed_deploy_in_the_background_is_shown_and_fails_the_call(notebook: Notebook) -> None:
    notebook.run("def load(): raise ValueError('no weights')")
    cell = notebook.run(f"%%fal_function setup_function=load\n{ONE}")
    with pytest.raises(CellExecutionError, match="no weights"):
        notebook.run("one()")
    assert "one: failed" in text(cell)


@pytest.mark.parametrize(
    "source",
    [
        f"%%fal_function keep_alives=1\n{ONE}",
        "%%fal_function\ndef broken(:\n    pass",
        f"%%fal_function\n{ONE}1 / 0",
        "%fal status nobody",
    ],
)
def test_bad_input_fails_its_cell(notebook: Notebook, source: str) -> None:
    with pytest.raises(CellExecutionError):
        notebook.run(source)


def test_an_interrupt_detaches_a_waiting_cell_and_the_deploy_goes_on(notebook: Notebook) -> None:
    notebook.run(SLOW.format(1.5))
    with notebook.interrupted_after(0.5):
        cell = notebook.run(f"%%fal_function setup_function=load wait=true\n{ONE}")
    assert "Detached: the deploy continues. Cancel it with: %fal cancel one" in text(cell)
    assert text(notebook.run("one()")) == "1"
    assert "one: active" in text(cell)


def test_a_file_is_deployed_with_the_output_of_a_cell(notebook: Notebook, tmp_path: Path) -> None:
    file = tmp_path / "app.py"
    file.write_text(FILE.format("import time; time.sleep(2)"))
    cell = notebook.run(f"%fal deploy {file}")
    assert [output.output_type for output in cell.outputs] == ["display_data"]
    assert "one: active" in text(cell)
    file.write_text(file.read_text().replace("return 1", "return 2"))
    with notebook.interrupted_after(1):
        cell = notebook.run(f"%fal deploy {file}")
    assert "Detached: the deploy continues. Cancel it with: %fal cancel one" in text(cell)
    notebook.run("%fal delete one")


def test_a_file_that_fails_to_deploy_shows_its_log_once(notebook: Notebook, tmp_path: Path) -> None:
    file = tmp_path / "app.py"
    file.write_text(FILE.format("print('loading'); raise ValueError('no file')"))
    with pytest.raises(CellExecutionError):
        notebook.run(f"%fal deploy {file}")
    said = text(notebook.last)
    assert said.count("| loading") == 1
    assert said.count("Traceback") == 1


def test_an_interrupt_before_the_gateway_answers_detaches_too(
    notebook: Notebook, gateway: GatewayInfo
) -> None:
    os.kill(gateway.pid, signal.SIGSTOP)
    try:
        with notebook.interrupted_after(0.5):
            cell = notebook.run(f"%%fal_function wait=true\n{ONE}")
    finally:
        os.kill(gateway.pid, signal.SIGCONT)
    assert "Detached" in text(cell)
    assert text(notebook.run("one()")) == "1"


def test_an_interrupted_call_is_an_ordinary_interrupt(notebook: Notebook) -> None:
    notebook.run(
        "%%fal_function wait=true\nimport asyncio\nasync def one(): await asyncio.sleep(60)"
    )
    with notebook.interrupted_after(0.5), pytest.raises(CellExecutionError, match="Interrupt"):
        notebook.run("one()")


def test_following_logs_ends_with_an_interrupt_without_an_error(notebook: Notebook) -> None:
    notebook.run("%%fal_function wait=true\ndef one(): print('I was here')")
    notebook.run("one()")
    with notebook.interrupted_after(1):
        cell = notebook.run("%fal logs one -f")
    assert "I was here" in text(cell)
    assert "(interrupted)" in text(cell)


def test_an_async_cell_awaits_calls_at_once(notebook: Notebook) -> None:
    notebook.run("%%fal_function max_multiplexing=4 wait=true\nasync def one(x): return x")
    cell = notebook.run("import asyncio\nawait asyncio.gather(*(one.aio(i) for i in range(4)))")
    assert text(cell) == "[0, 1, 2, 3]"


CLASSES = """
import dataclasses, enum, pydantic
class Color(enum.Enum):
    R = 1
class Outer:
    @dataclasses.dataclass
    class Point:
        x: int = 1
class Model(pydantic.BaseModel):
    color: Color = Color.R
    point: Outer.Point = Outer.Point()
class Odd(Exception): pass
"""
KNOWN = """%%fal_function known wait=true
def known(model: Model, odd: bool) -> Model:
    assert isinstance(model, Model) and isinstance(model.point, Outer.Point)
    assert model.color is Color.R
    if odd: raise Odd
    return model
"""
ASKED = """
told = known(Model(), False) == Model()
try: known(Model(), True)
except Odd: print(told)
"""


def test_after_a_restart_the_notebooks_classes_are_still_the_runners(gateway: GatewayInfo) -> None:
    with deleted_after("known"):
        for said in ("active (revision 1)", "up to date (revision 1)"):
            with Notebook().started() as notebook:
                notebook.run(CLASSES)
                assert said in text(notebook.run(KNOWN))
                assert text(notebook.run(ASKED)) == "True\n"


def test_the_notebook_is_named_by_the_session_of_the_server(notebook: Notebook) -> None:
    notebook.run("os.environ['JPY_SESSION_NAME'] = '/work/a.ipynb'")
    notebook.run(f"%%fal_function wait=true\n{ONE}")
    assert text(notebook.run("one.status()['notebook']")) == "'notebook /work/a.ipynb'"
    notebook.run("del os.environ['JPY_SESSION_NAME']")


@pytest.fixture
def cold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Notebook]:
    """A notebook whose gateway does not run; it cannot start while start.lock is held."""
    monkeypatch.setenv("FAL_NOTEBOOK_STATE", str(tmp_path))
    with Notebook().started() as notebook:
        notebook.attended()
        yield notebook
        notebook.run("%fal gateway stop")


def test_a_cell_does_not_wait_for_a_gateway_that_starts(cold: Notebook, tmp_path: Path) -> None:
    with FileLock(tmp_path / "start.lock", mode=0o600):
        cell = cold.run(f"%%fal_function\n{ONE}")
        assert text(cell) == "one: starts the gateway"
        assert text(cold.run("one")) == "<fal app tester/one (deploying)>"
    assert text(cold.run("one()")) == "1"
    assert text(cell).startswith("one: active (revision 1)  http://127.0.0.1")


def test_a_notebook_that_is_executed_has_left_its_deploy_with_the_gateway(
    own_gateway: Path,
) -> None:
    with Notebook().started() as notebook:
        cell = notebook.run(f"%%fal_function\n{ONE}")
    assert text(cell).startswith(("one: deploying (revision 1)", "one: active (revision 1)"))
    eventually(lambda: Handle("tester", "one").status()["number"] == 1)


def test_what_a_gateway_that_starts_refuses_is_shown(cold: Notebook, tmp_path: Path) -> None:
    with FileLock(tmp_path / "start.lock", mode=0o600):
        cell = cold.run(f"%%fal_function secrets=ABSENT\n{ONE}")
    with pytest.raises(CellExecutionError, match="ABSENT"):
        cold.run("one()")
    assert text(cell).startswith("one: failed\n")
    assert "ABSENT" in text(cell)
