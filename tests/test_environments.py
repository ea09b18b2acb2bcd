"""Environments with the real uv and small real packages from the registry."""

from __future__ import annotations

import asyncio
import contextlib
import json
import platform
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest
from runner_bench import define, notebook

from fal_notebook import deploy
from fal_notebook.backends import uv_process
from fal_notebook.backends.details import Detail
from fal_notebook.backends.environments import EnvironmentSpec, ensure
from fal_notebook.backends.runner_libraries import RUNNER_LIBRARIES, ensure_runner_libraries
from fal_notebook.backends.uv_process import reason, uv_environment
from fal_notebook.discovery import GatewayInfo
from fal_notebook.exceptions import BuildError, DeployError

VERSION = platform.python_version()
MINOR = ".".join(VERSION.split(".")[:2])
LINUX = sys.platform == "linux"


def spec(*layers: tuple[str, ...], **others: bool) -> EnvironmentSpec:
    return EnvironmentSpec(sys.executable, VERSION, layers, **others)


def silent(line: str) -> None:
    """Progress for those who do not look."""


def generations(root: Path) -> list[str]:
    return sorted(path.name for path in root.glob("envs/*/[0-9]*"))


def run(python: Path, code: str) -> str:
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def no_uv(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return a switch after which calling uv is an error."""

    def called() -> str:
        raise AssertionError("uv was called")

    return lambda: monkeypatch.setattr(uv_process, "_program", called)


SLOW_BACKEND = """
import pathlib, subprocess, sys, time
def build_wheel(*args, **kwargs):
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    sleeper = subprocess.Popen(command, start_new_session=LEAVES)
    pathlib.Path("PIDS").write_text(str(sleeper.pid))
    sleeper.wait()
"""
FAILING_BACKEND = """
import sys
def build_wheel(*args, **kwargs):
    sys.exit("foo.h is missing")
"""


def source_package(folder: Path, backend: str) -> str:
    """Make a package whose build runs `backend`; its requirement needs no registry."""
    folder.mkdir()
    code = backend.replace("PIDS", str(folder / ".pid")).replace("LEAVES", str(LINUX))
    (folder / "backend.py").write_text(code)
    (folder / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        f'[project]\nname = "{folder.name}"\nversion = "1"\n'
    )
    return str(folder)


@pytest.fixture
async def slow_build(tmp_path: Path) -> AsyncIterator[tuple[asyncio.Task[Path], int]]:
    """A build that would take a minute, and the process id of its build backend's child."""
    package = source_package(tmp_path / "slow", SLOW_BACKEND)
    task = asyncio.create_task(ensure(tmp_path, spec(("six",), (package,)), silent))
    pid_file = tmp_path / "slow" / ".pid"
    deadline = time.monotonic() + 20
    while not (pid_file.exists() and pid_file.read_text()):
        assert time.monotonic() < deadline
        assert not task.done(), task.exception()
        await asyncio.sleep(0.02)
    yield task, int(pid_file.read_text())
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


# --- keys -------------------------------------------------------------------------------------


def test_the_key_keeps_the_order_of_layers_but_not_within_them() -> None:
    assert spec(("six", "humanize")).key() == spec(("humanize", "six")).key()
    assert spec(("six",), ("humanize",)).key() != spec(("humanize",), ("six",)).key()
    assert spec(("six",), ("humanize",)).key() != spec(("six", "humanize")).key()


def test_the_key_ignores_spelling_but_not_content() -> None:
    assert spec(("Typing_Extensions >= 4",)).key() == spec(("typing-extensions>=4", " ")).key()
    assert spec(("six",), ()).key() == spec(("six",)).key()
    assert spec(("six",)).key() != spec(("six==1.16",)).key()
    assert spec(("six",)).key() == spec(("six",), compile_bytecode=True).key()


def test_the_key_tells_pythons_apart() -> None:
    keys = {
        EnvironmentSpec(interpreter, version, (("six",),)).key()
        for interpreter, version in [
            ("/nowhere/python3.13", "3.13.1"),
            ("/nowhere/python3.13", "3.13.2"),
            ("/nowhere/python3.13t", "3.13.1"),
            ("/nowhere/pypy3.13", "3.13.1"),
        ]
    }
    assert len(keys) == 4


def test_the_key_is_the_same_for_two_kernels_of_one_python() -> None:
    one = EnvironmentSpec("/a/bin/python3.12", "3.12.1", (("six",),))
    other = EnvironmentSpec("/b/bin/python", "3.12.1", (("six",),))
    assert one.key() == other.key()


# --- building ---------------------------------------------------------------------------------


async def test_a_second_ensure_is_instant_and_does_not_call_uv(
    tmp_path: Path, no_uv: Callable[[], None]
) -> None:
    said: list[str] = []
    python = await ensure(tmp_path, spec(("six",)), said.append)
    assert run(python, f"import six, sys; print(sys.version_info[:2] == {sys.version_info[:2]})")
    assert any("six==" in line for line in said)
    assert said[-1].startswith("environment ready after")
    assert not any("\x1b" in line for line in said)
    no_uv()
    said.clear()
    started = time.perf_counter()
    assert await ensure(tmp_path, spec(("six",)), said.append) == python
    assert time.perf_counter() - started < 0.1
    assert said == []


async def test_the_environment_holds_the_requirements_and_nothing_of_the_kernel(
    tmp_path: Path,
) -> None:
    python = await ensure(tmp_path, spec(("six==1.16.0",)), silent)
    assert run(python, "import six; print(six.__version__)") == "1.16.0"
    assert run(python, "import importlib.util as u; print(u.find_spec('pytest'))") == "None"


async def test_layers_are_installed_in_order(tmp_path: Path) -> None:
    said: list[str] = []
    python = await ensure(
        tmp_path, spec(("six==1.15.0",), ("humanize", "six==1.16.0")), said.append
    )
    assert run(python, "import humanize, six; print(six.__version__)") == "1.16.0"
    assert (
        said.index(" + six==1.15.0") < said.index(" - six==1.15.0") < said.index(" + six==1.16.0")
    )


async def test_no_requirements_make_an_empty_environment(tmp_path: Path) -> None:
    python = await ensure(tmp_path, spec(), silent)
    assert run(python, "print(1)") == "1"


async def test_bytecode_is_compiled_on_request(tmp_path: Path) -> None:
    python = await ensure(tmp_path, spec(("six",), compile_bytecode=True), silent)
    assert list(python.parents[1].glob("lib/*/site-packages/__pycache__/six*.pyc"))


async def test_a_requirements_file_option_is_accepted(tmp_path: Path) -> None:
    layer = ("--only-binary :all:", "six")
    python = await ensure(tmp_path, spec(layer), silent)
    assert run(python, "import six; print(1)") == "1"


async def test_the_marker_is_written_last_and_says_what_was_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    markers: list[bool] = []

    def look(_: str) -> None:
        markers.append(bool(list(tmp_path.glob("envs/*/*/.complete"))))

    python = await ensure(tmp_path, spec(("six",)), look)
    assert markers == [False] * (len(markers) - 1) + [True]
    record = json.loads((python.parents[1] / ".complete").read_text())
    assert record["requirements"] == [["six"]]
    assert record["python_version"] == VERSION
    assert record["uv"]
    assert record["time"]


async def test_two_concurrent_ensures_build_once(tmp_path: Path) -> None:
    said: list[str] = []
    pythons = await asyncio.gather(
        *[ensure(tmp_path, spec(("six",)), said.append) for _ in range(2)]
    )
    assert pythons[0] == pythons[1]
    assert sum(line.startswith("Creating virtual environment") for line in said) == 1
    assert generations(tmp_path) == ["1"]


async def test_two_processes_build_once(tmp_path: Path) -> None:
    code = (
        "import asyncio, sys, pathlib; from fal_notebook.backends.environments import *\n"
        f"spec = EnvironmentSpec(sys.executable, {VERSION!r}, (('six',),))\n"
        f"print(asyncio.run(ensure(pathlib.Path({str(tmp_path)!r}), spec, print)))"
    )
    both = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE
        )
        for _ in range(2)
    ]
    outputs = [(await process.communicate())[0].decode().split("\n") for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert outputs[0][-2] == outputs[1][-2]
    assert sum("ready" in line for lines in outputs for line in lines) == 1


async def test_a_forced_build_leaves_the_running_environment_alone(tmp_path: Path) -> None:
    old = await ensure(tmp_path, spec(("six",)), silent)
    new = await ensure(tmp_path, spec(("six",)), silent, force=True)
    assert new != old
    assert run(old, "import six; print(1)") == run(new, "import six; print(1)") == "1"
    assert await ensure(tmp_path, spec(("six",)), silent) == new


async def test_a_failed_forced_build_keeps_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = await ensure(tmp_path, spec(("six",)), silent)
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    with pytest.raises(BuildError, match="six"):
        await ensure(tmp_path, spec(("six",)), silent, force=True)
    assert await ensure(tmp_path, spec(("six",)), silent) == old
    assert generations(tmp_path) == ["1"]


async def test_a_half_built_folder_is_removed_and_its_number_not_used_again(tmp_path: Path) -> None:
    wanted = spec(("six",))
    rubbish = tmp_path / "envs" / wanted.key() / "1"
    (rubbish / "bin").mkdir(parents=True)
    (rubbish / "bin" / "python").write_text("broken")
    python = await ensure(tmp_path, wanted, silent)
    assert generations(tmp_path) == ["2"]
    assert run(python, "import six; print(1)") == "1"


async def test_an_environment_whose_interpreter_is_gone_is_built_again(tmp_path: Path) -> None:
    old = await ensure(tmp_path, spec(("six",)), silent)
    old.unlink()
    old.symlink_to(tmp_path / "uninstalled" / "python3")
    python = await ensure(tmp_path, spec(("six",)), silent)
    assert run(python, "import six; print(1)") == "1"


# --- breaking off -----------------------------------------------------------------------------


def processes_in(folder: Path) -> list[psutil.Process]:
    """Return what this test started and still runs for a build in `folder`."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if str(folder) in " ".join([process.cwd(), *process.cmdline()]):
                found.append(process)
    return found


async def test_a_cancelled_build_leaves_neither_processes_nor_files(
    tmp_path: Path, slow_build: tuple[asyncio.Task[Path], int]
) -> None:
    task, grandchild = slow_build
    assert generations(tmp_path) == ["1"]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    deadline = time.monotonic() + 5
    while psutil.pid_exists(grandchild) and time.monotonic() < deadline:
        if psutil.Process(grandchild).status() == psutil.STATUS_ZOMBIE:
            break  # dead; this machine's init has not collected it yet
        await asyncio.sleep(0.02)
    else:
        assert not psutil.pid_exists(grandchild)
    assert processes_in(tmp_path) == []
    assert generations(tmp_path) == []


def begun(package: str, eventually: Callable[..., object]) -> psutil.Process:
    """Return what the slow build backend of a package started, when it has done so."""
    file = Path(package) / ".pid"
    eventually(lambda: file.exists() and file.read_text())
    return psutil.Process(int(file.read_text()))


@pytest.mark.linux  # for child subreapers
def test_a_build_ends_with_the_process_that_wants_it(
    tmp_path: Path, eventually: Callable[..., object]
) -> None:
    package = source_package(tmp_path / "slow", SLOW_BACKEND)
    code = (
        "import asyncio, sys, pathlib; from fal_notebook.backends.environments import *\n"
        f"spec = EnvironmentSpec(sys.executable, {VERSION!r}, (({package!r},),))\n"
        f"asyncio.run(ensure(pathlib.Path({str(tmp_path)!r}), spec, print))"
    )
    builder = psutil.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    sleeper = begun(package, eventually)
    below = builder.children(recursive=True)
    assert any(process.name() == "uv" for process in below)
    builder.kill()
    builder.wait()
    eventually(lambda: not any(map(alive, [sleeper, *below])))


@pytest.mark.linux  # for child subreapers
def test_what_the_killed_keeper_of_a_build_leaves_is_ended_by_the_gateway(
    gateway: GatewayInfo, tmp_path: Path, eventually: Callable[..., object]
) -> None:
    package = source_package(tmp_path / "slow", SLOW_BACKEND)
    with notebook():
        handle = deploy(define("def f(): return 1")["f"], requirements=[package])
    sleeper = begun(package, eventually)
    uv = next(p for p in psutil.Process(gateway.pid).children(True) if p.name() == "uv")
    keeper = uv.parent()
    assert keeper is not None
    assert keeper.pid != gateway.pid
    keeper.kill()
    with pytest.raises(DeployError, match="installing"):
        handle.wait()
    eventually(lambda: not any(map(alive, [sleeper, uv, keeper])))


def alive(process: psutil.Process) -> bool:
    """Say whether a process runs; one that has ended and was not yet buried does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_after_a_cancelled_build_the_same_environment_can_be_built(tmp_path: Path) -> None:
    task: asyncio.Task[Path]
    task = asyncio.create_task(ensure(tmp_path, spec(("six",)), lambda line: task.cancel()))
    with pytest.raises(asyncio.CancelledError):
        await task
    assert generations(tmp_path) == []
    python = await ensure(tmp_path, spec(("six",)), silent)
    assert run(python, "import six; print(1)") == "1"


async def test_one_who_waits_can_give_up_without_harm(
    tmp_path: Path, slow_build: tuple[asyncio.Task[Path], int]
) -> None:
    told = asyncio.Event()
    said: list[str] = []

    def progress(line: str) -> None:
        said.append(line)
        told.set()

    wanted = spec(("six",), (str(tmp_path / "slow"),))
    waiting = asyncio.create_task(ensure(tmp_path, wanted, progress))
    await told.wait()
    await asyncio.sleep(0.2)
    assert said == ["waiting for another build of the same environment"]
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not slow_build[0].done()
    assert generations(tmp_path) == ["1"]


async def test_steps_are_told_as_they_begin_and_what_uv_says_as_their_details(
    tmp_path: Path,
) -> None:
    said: list[str] = []
    await ensure(tmp_path, spec(("six",)), said.append)
    steps = [line for line in said if not isinstance(line, Detail)]
    assert steps[:2] == ["making the environment", "installing six"]
    assert len(steps) == 3
    assert said.index("installing six") < len(said) - 2


# --- refusals ---------------------------------------------------------------------------------


async def test_an_unknown_package_gives_the_reason_of_uv(tmp_path: Path) -> None:
    with pytest.raises(BuildError) as caught:
        await ensure(tmp_path, spec(("six", "fal-notebook-no-such-package")), silent)
    message = str(caught.value)
    assert message.startswith("installing fal-notebook-no-such-package, six failed: No solution")
    assert "Because fal-notebook-no-such-package was not found in the package registry" in message
    assert "\n" not in message
    assert generations(tmp_path) == []


@pytest.mark.parametrize("wrong", ["six>=", "six==99", "./nowhere"])
async def test_a_wrong_requirement_is_refused_and_leaves_nothing(
    tmp_path: Path, wrong: str
) -> None:
    two = [ensure(tmp_path, spec((wrong,)), silent) for _ in range(2)]  # the second one waits
    for error in await asyncio.gather(*two, return_exceptions=True):
        assert isinstance(error, BuildError)
        assert "installing" in str(error)
    assert list((tmp_path / "envs").iterdir()) == []


async def test_the_output_of_a_failing_build_backend_is_shown(tmp_path: Path) -> None:
    package = source_package(tmp_path / "failing", FAILING_BACKEND)
    with pytest.raises(BuildError, match=r"foo\.h is missing"):
        await ensure(tmp_path, spec((package,)), silent)
    assert generations(tmp_path) == []


async def test_a_missing_interpreter_is_a_build_error(tmp_path: Path) -> None:
    gone = EnvironmentSpec(str(tmp_path / "gone" / "python3"), VERSION, (("six",),))
    with pytest.raises(BuildError, match=r"making the environment failed: .*gone"):
        await ensure(tmp_path, gone, silent)


async def test_an_interpreter_of_another_minor_is_refused(tmp_path: Path) -> None:
    other = EnvironmentSpec(sys.executable, "3.8.1", (("six",),))
    with pytest.raises(BuildError, match=r"was captured with 3\.8\.1"):
        await ensure(tmp_path, other, silent)
    assert generations(tmp_path) == []


async def test_a_state_folder_that_cannot_be_written_is_a_build_error(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(BuildError, match="cannot be written: Not a directory"):
        await ensure(file, spec(("six",)), silent)


async def test_without_the_uv_program_there_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> str:
        raise FileNotFoundError

    monkeypatch.setattr(uv_process.uv, "find_uv_bin", missing)
    with pytest.raises(BuildError, match="pip install uv"):
        await ensure(tmp_path, spec(("six",)), silent)


# --- what uv is told, and what it says --------------------------------------------------------


def test_uv_gets_a_clean_view_but_keeps_index_proxy_and_certificates() -> None:
    kept = {"PATH": "/bin", "https_proxy": "p", "SSL_CERT_FILE": "c", "UV_CACHE_DIR": "d"}
    dropped = ["VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONPATH", "UV_PYTHON", "FAL_KEY", "UV_PROJECT"]
    seen = uv_environment({**kept, **dict.fromkeys(dropped, "x")})
    assert kept.items() <= seen.items()
    assert not set(dropped) & set(seen)


def test_the_index_of_pip_counts_unless_uv_has_one() -> None:
    assert uv_environment({"PIP_INDEX_URL": "mine"})["UV_DEFAULT_INDEX"] == "mine"
    own = uv_environment({"PIP_INDEX_URL": "mine", "UV_INDEX_URL": "its"})
    assert "UV_DEFAULT_INDEX" not in own
    assert own["UV_INDEX_URL"] == "its"


def test_the_boxes_of_an_older_uv_are_unwrapped() -> None:
    said = [
        "Using Python 3.11.7 environment at e",
        "  × No solution found when resolving dependencies:",
        "  ╰─▶ Because nosuchpkg was not found in the package registry and",
        "      you require nosuchpkg, we can conclude that your requirements",
        "      are unsatisfiable.",
    ]
    assert reason(said) == (
        "No solution found when resolving dependencies: Because nosuchpkg was not found in the "
        "package registry and you require nosuchpkg, we can conclude that your requirements are "
        "unsatisfiable."
    )


def test_a_full_disk_is_said_in_words() -> None:
    said = [
        "Resolved 1 package in 1.09s",
        "error: Failed to install: numpy-2.4.6.whl (numpy==2.4.6)",
        "  cause: failed to copy file: No space left on device (os error 28)",
    ]
    assert reason(said).startswith("the disk is full; Failed to install: numpy")


async def test_a_uv_that_is_killed_is_said_to_be(tmp_path: Path, monkeypatch) -> None:
    program = tmp_path / "uv"
    program.write_text("#!/bin/sh\necho 'Resolved 12 packages in 522ms' >&2\nkill -9 $$\n")
    program.chmod(0o755)
    monkeypatch.setattr(uv_process, "_program", lambda: str(program))
    with pytest.raises(
        BuildError, match=r"^installing six failed: it was ended by SIGKILL; the ma"
    ):
        await uv_process.run_uv([], tmp_path, "installing six", lambda line: None)


def test_a_uv_without_a_word_still_gives_a_reason() -> None:
    assert reason([]) == "uv said nothing"
    assert reason(["killed"]) == "killed"


# --- the runner's own libraries ---------------------------------------------------------------


async def test_the_runner_libraries_are_made_once_and_give_way_to_the_users_pins(
    tmp_path: Path, no_uv: Callable[[], None]
) -> None:
    libraries, python = await asyncio.gather(
        ensure_runner_libraries(tmp_path, sys.executable, MINOR, silent),
        ensure(tmp_path, spec(("cloudpickle==3.0.0",)), silent),
    )
    no_uv()
    assert libraries == await ensure_runner_libraries(tmp_path, sys.executable, MINOR, silent)
    code = (
        f"import sys; sys.path.append({str(libraries)!r})\n"
        "import cloudpickle, httptools, httpx, packaging, pydantic, starlette, uvicorn, uvloop\n"
        f"assert pydantic.__file__.startswith({str(libraries)!r})\n"
        "print(cloudpickle.__version__)"
    )
    assert run(python, code) == "3.0.0"


def test_the_runner_libraries_are_named_as_dependencies_of_the_package() -> None:
    from importlib.metadata import PackageNotFoundError, requires

    from packaging.requirements import Requirement

    try:
        lines = requires("fal-notebook") or []
    except PackageNotFoundError:
        pytest.fail("the tests run against the installed package")
    names = {Requirement(line).name for line in lines}
    names |= {"uvloop", "websockets"}  # uvicorn[standard] brings them
    names |= {"typing-extensions"}  # pydantic brings it
    assert {Requirement(line).name for line in RUNNER_LIBRARIES} <= names
