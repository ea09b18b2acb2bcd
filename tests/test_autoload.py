"""Kernels have the magics without %load_ext, through the configuration that the wheel ships."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import start_new_kernel

from fal_notebook.discovery import GatewayInfo

CONFIGURATION = Path(__file__).parents[1] / "etc" / "ipython" / "ipython_kernel_config.json"
INSTALLED = "FAL_NOTEBOOK_TEST_INSTALLED" in os.environ

Start = Callable[..., BlockingKernelClient]


@pytest.fixture
def python(tmp_path: Path) -> str:
    """An environment in which the configuration lies where the wheel puts it."""
    prefix = tmp_path / "environment"
    venv.create(prefix, symlinks=True)
    (packages,) = prefix.glob("lib/python*/site-packages")
    ours = [path for path in sys.path if path.endswith("site-packages")]
    lines = [f"import site; site.addsitedir({path!r})" for path in ours]
    (packages / "ours.pth").write_text("\n".join(lines))
    (prefix / "etc" / "ipython").mkdir(parents=True)
    shutil.copy(CONFIGURATION, prefix / "etc" / "ipython")
    return str(prefix / "bin" / "python")


@pytest.fixture
def profile(tmp_path: Path, monkeypatch) -> Path:
    """The folder of the user's own configuration of kernels."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    folder = tmp_path / "ipython" / "profile_default"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def start(gateway: GatewayInfo, profile: Path, tmp_path: Path, monkeypatch) -> Iterator[Start]:
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    started = []

    def kernel(python: str) -> BlockingKernelClient:
        folder = tmp_path / "jupyter" / "kernels" / "probe"
        folder.mkdir(parents=True)
        argv = [python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        spec = {"argv": argv, "display_name": "probe", "language": "python"}
        (folder / "kernel.json").write_text(json.dumps(spec))
        with open(tmp_path / "stderr", "wb") as stderr:
            manager, client = start_new_kernel(kernel_name="probe", stderr=stderr)
        started.append((manager, client))
        return client

    yield kernel
    for manager, client in started:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def run(kernel: BlockingKernelClient, source: str) -> tuple[str, str]:
    """Return status and everything that a cell shows."""
    shown: list[str] = []

    def keep(message: dict[str, Any]) -> None:
        content = message["content"]
        shown.append(content.get("text") or content.get("data", {}).get("text/plain", ""))

    reply = kernel.execute_interactive(source, output_hook=keep, timeout=60)
    return reply["content"]["status"], "".join(shown)


def tab(kernel: BlockingKernelClient, line: str) -> list[str]:
    return list(kernel.complete(line, reply=True, timeout=60)["content"]["matches"])


@pytest.mark.skipif(not INSTALLED, reason="only make test installs the wheel")
def test_the_installed_wheel_loads_the_magics_into_every_kernel(start: Start) -> None:
    assert run(start(sys.executable), "%fal gateway status")[0] == "ok"


def test_a_kernel_has_the_magics_without_load_ext_and_load_ext_is_silent(
    start: Start, python: str
) -> None:
    kernel = start(python)
    assert run(kernel, "%fal status")[0] == "ok"
    assert run(kernel, "%load_ext fal_notebook") == ("ok", "")
    assert run(kernel, "%fal gateway status")[0] == "ok"
    assert run(kernel, "%unload_ext fal_notebook") == ("ok", "")
    assert "not found" in run(kernel, "%fal status")[1]


def test_tab_completes_in_a_kernel_also_while_the_gateway_is_stopped(
    start: Start, python: str, gateway: GatewayInfo
) -> None:
    kernel = start(python)
    assert tab(kernel, "%fal gateway st") == ["start", "status", "stop"]
    assert tab(kernel, "%%fal_function machine_type=GPU-A1") == ["GPU-A100"]
    os.kill(gateway.pid, signal.SIGSTOP)
    try:
        tab(kernel, "%fal status ")
        assert tab(kernel, "%%fal_function keep_al") == ["keep_alive="]
    finally:
        os.kill(gateway.pid, signal.SIGCONT)


def test_the_users_own_extensions_load_beside_ours(
    start: Start, python: str, profile: Path
) -> None:
    (profile / "ipython_kernel_config.py").write_text(
        "c.InteractiveShellApp.extensions = ['autoreload']"
    )
    beside = Path(python).parents[1] / "etc" / "ipython" / "ipython_config.json"
    beside.write_text('{"InteractiveShellApp": {"exec_lines": ["theirs = 1"]}}')
    kernel = start(python)
    assert run(kernel, "%autoreload 0\ntheirs\n%fal gateway status")[0] == "ok"


def test_a_profile_can_opt_out(start: Start, python: str, profile: Path) -> None:
    (profile / "ipython_kernel_config.py").write_text("c.InteractiveShellApp.extra_extensions = []")
    kernel = start(python)
    assert "not found" in run(kernel, "%fal status")[1]
    assert run(kernel, "%load_ext fal_notebook\n%fal gateway status")[0] == "ok"


def test_a_package_that_cannot_be_imported_breaks_no_kernel(
    start: Start, python: str, tmp_path: Path, monkeypatch
) -> None:
    broken = tmp_path / "broken" / "fal_notebook"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('half an installation')")
    monkeypatch.setenv("PYTHONPATH", str(broken.parent))
    assert run(start(python), "1 + 1") == ("ok", "2")
    assert "half an installation" in (tmp_path / "stderr").read_text()
