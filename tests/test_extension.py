"""The extension of IPython: loading, what it leaves as it was, what it says of imports."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from typing import Any

import pytest
from cells import ONE, cell, plain, refusal
from IPython.core.error import UsageError


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


def test_the_gateways_traffic_is_not_in_what_a_notebook_logs(shell, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    shell.run("%%fal_function wait=true\ndef quiet() -> int:\n    return 1\n")
    assert shell["quiet"]() == 1
    assert [r for r in caplog.records if r.name.startswith(("httpx", "httpcore"))] == []
