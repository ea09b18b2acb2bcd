"""A deploy in a real IPython terminal: no cell waits, and the prompt is told how it ended."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest
from serving import eventually

from fal_notebook.handle import Handle


@pytest.fixture
def terminal(
    own_gateway: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Iterator[pexpect.spawn]:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PROMPT_TOOLKIT_NO_CPR", "1")
    options = ["--no-banner", "--no-confirm-exit", "--colors=NoColor"]
    options += getattr(request, "param", [])
    child = pexpect.spawn(
        sys.executable, ["-m", "IPython", *options], dimensions=(40, 250), timeout=60
    )
    child.expect_exact("In [1]:")
    child.sendline("%load_ext fal_notebook")
    child.expect_exact("In [2]:")
    yield child
    child.close(force=True)


def deploy(terminal: pexpect.spawn, function: str, line: str = "") -> None:
    """One line: an editor in the terminal would indent what is typed below."""
    terminal.sendline(f"get_ipython().run_cell('%%fal_function {line}\\n{function}');")


@pytest.mark.parametrize("terminal", [[], ["--simple-prompt"]], indirect=True)
def test_a_terminal_is_told_at_the_prompt_how_a_deploy_ended(terminal: pexpect.spawn) -> None:
    deploy(terminal, "def one(): return 1")
    terminal.expect_exact("one: starts the gateway")
    terminal.expect_exact("In [3]:")
    terminal.expect(r"one: active \(revision 1\)  http")
    terminal.sendline("one() + 41")
    terminal.expect(r"Out\[3\]:.*42")


def test_a_script_that_ends_has_left_its_deploy_with_the_gateway(
    own_gateway: Path, tmp_path: Path
) -> None:
    source = "%%fal_function\ndef one(): return 1"
    lines = f"%load_ext fal_notebook\nget_ipython().run_cell({source!r})\n"
    (tmp_path / "script.ipy").write_text(lines)
    script = ["-m", "IPython", "--no-banner", str(tmp_path / "script.ipy")]
    output, status = pexpect.run(
        shlex.join([sys.executable, *script]), withexitstatus=True, timeout=60
    )
    assert (status, b"one: deploying (revision 1)" in output) == (0, True)
    eventually(lambda: Handle("tester", "one").status()["number"] == 1)


def test_a_terminal_is_told_of_a_refusal_too(terminal: pexpect.spawn) -> None:
    deploy(terminal, "def one(): return 1")
    terminal.expect_exact("one: active (revision 1)")
    deploy(terminal, "def one(): return 2", "requirements=nosuchpackage-xyz")
    terminal.expect("nosuchpackage-xyz.* failed")


def test_a_step_that_takes_long_is_told_above_the_prompt(terminal: pexpect.spawn) -> None:
    deploy(terminal, "def one(): return 1", "wait=true")
    terminal.expect_exact("one: active (revision 1)")
    terminal.sendline("def load(): import time; time.sleep(3)")
    terminal.sendline("")
    deploy(terminal, "def one(): return 2", "setup_function=load")
    terminal.expect_exact("one: starting: runner")
    terminal.expect_exact("one: active (revision 2)")


def test_a_cell_that_waits_rewrites_one_line(terminal: pexpect.spawn) -> None:
    terminal.sendline("def load(): import time; time.sleep(3)")
    terminal.sendline("")
    deploy(terminal, "def one(): return 1", "wait=true setup_function=load")
    terminal.expect_exact("\rone: 1 s  starting: runner\x1b[K")
    terminal.expect_exact("\rone: 2 s  starting: runner\x1b[K")
    terminal.expect_exact("\r\x1b[Kone: active (revision 1)")
