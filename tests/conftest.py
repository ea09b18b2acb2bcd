"""Which tests run here, that CI skips none of them, and the real parts that they share."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, TypeVar

import docker
import fal_client.client
import javascript
import pytest
from browsers import chromium
from gateway_processes import processes_of, stop
from playwright.sync_api import Browser
from private_registry import Registry
from runner_bench import Bench
from serving import ACT, control, deployed, eventually, run_url, small_file_system

from fal_notebook import cli, discovery, sync
from fal_notebook.discovery import GatewayInfo
from fal_notebook.gateway.store import Store
from fal_notebook.handle import Handle, shared_client

# What GitHub's macOS does not have: an engine, small file systems, limits of memory.
LINUX_ONLY = frozenset({"docker_host", "small_disk", "cramped"})

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


def pytest_configure(config: pytest.Config) -> None:
    if not config.option.markexpr:
        elsewhere = "macos" if sys.platform == "linux" else "linux"
        config.option.markexpr = f"not gpu and not {elsewhere}"


@pytest.hookimpl(tryfirst=True)  # pytest and xdist read the marks in hooks of the same name
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have the tests of one file, and all that share the Docker engine, run one by one.

    Those with a browser too: each container that comes and goes is a change of the network, on
    which Chromium breaks off what it is loading.
    """
    for item in items:
        names = getattr(item, "fixturenames", ())
        if not LINUX_ONLY.isdisjoint(names):
            item.add_marker(pytest.mark.linux)
        engine = not {"docker_host", "browser"}.isdisjoint(names)
        engine = engine or item.path.name == "test_backend_contract.py"
        item.add_marker(pytest.mark.xdist_group("engine" if engine else item.path.name))


def _fail_if_skipped(report: Report) -> Report:
    strict = os.environ.get("CI") == "true"
    if report.skipped and not hasattr(report, "wasxfail") and strict:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid}: CI=true lets no test be skipped. {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return _fail_if_skipped((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _fail_if_skipped((yield))


@pytest.fixture(scope="session", autouse=True)
def private_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A state folder of this test run; no test ever touches the user's own."""
    state = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAL_NOTEBOOK_STATE", str(state))
        patch.setenv("FAL_NOTEBOOK_CONFIG", str(state / "config.toml"))
        patch.setenv("FAL_NOTEBOOK_OWNER", "tester")
        patch.delenv("JPY_SESSION_NAME", raising=False)
        yield state
        cli.run(["gateway", "stop"], "fal-notebook")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One Chromium; its loop runs in this thread, so modules with async tests cannot have it."""
    with chromium() as found:
        yield found


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which fal's JavaScript client is installed, once per run."""
    folder = tmp_path_factory.mktemp("js")
    javascript.install(folder)
    return folder


@pytest.fixture(scope="session")
def docker_host() -> Iterator[str]:
    """The address of a real Docker engine that has ``python:X.Y-slim`` of this Python."""
    scripts = Path(__file__).parent / "docker"
    if shutil.which("dockerd") is None:
        pytest.skip("there is no Docker engine; on Debian, `make test` installs one for root")
    start = ["bash", str(scripts / "engine.sh"), "start"]
    started = subprocess.run(start, capture_output=True, text=True)
    if started.returncode:
        pytest.skip(f"the Docker engine does not start: {started.stderr[-300:]}")
    host, how = started.stdout.split()
    base_image = [sys.executable, str(scripts / "base_image.py")]
    subprocess.run(base_image, env={**os.environ, "DOCKER_HOST": host}, check=True)
    yield host
    if how == "started":
        subprocess.run(["bash", str(scripts / "engine.sh"), "stop"], check=True)


@pytest.fixture(scope="module")
def registry(docker_host: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A private registry of images; its images are removed from the engine at the end."""
    if shutil.which("docker-registry") is None:
        pytest.skip("there is no docker-registry; on Debian, `make test` installs it for root")
    registry = Registry(tmp_path_factory.mktemp("registry"))
    yield registry
    registry.close()
    registry.remove_images(docker_host)


@pytest.fixture(scope="module")
def containers(docker_host: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A state folder whose gateway deploys to containers."""
    state = tmp_path_factory.mktemp("docker-state")
    sync.wait(shared_client().close())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAL_NOTEBOOK_STATE", str(state))
        patch.setenv("DOCKER_HOST", docker_host)
        patch.setenv("FAL_NOTEBOOK_TARGET", "docker")
        yield state
        sync.wait(shared_client().stop_gateway())
        discovery.wait_until_gone(state)
    sync.wait(shared_client().close())


@pytest.fixture(scope="module")
def lab_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A state folder for Jupyter servers and their kernels, whose gateway may be killed."""
    state = tmp_path_factory.mktemp("lab-state")
    sync.wait(shared_client().close())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAL_NOTEBOOK_STATE", str(state))
        yield state
        sync.wait(shared_client().stop_gateway())
        discovery.wait_until_gone(state)
    sync.wait(shared_client().close())


@pytest.fixture(scope="module")
def engine(docker_host: str) -> Iterator[docker.APIClient]:
    """The engine itself, to look at what is there."""
    client = docker.APIClient(docker_host)
    yield client
    client.close()


@pytest.fixture(scope="session")
def gateway(private_state: Path) -> GatewayInfo:
    """The one gateway that most tests share."""
    return discovery.ensure(private_state)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty store."""
    store = Store(tmp_path / "store.db")
    yield store
    store.close()


@pytest.fixture
def key(gateway: GatewayInfo, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A key, with the addresses of fal's client turned to the gateway."""
    addresses = {
        "QUEUE_URL_FORMAT": "/queue/",
        "RUN_URL_FORMAT": "/run/",
        "REST_URL": "/rest",
        "CDN_URL": "/cdn",
    }
    for name, path in addresses.items():
        monkeypatch.setattr(fal_client.client, name, gateway.url + path)
    with control(gateway) as api:
        made = api.post("/api/keys").json()
        yield made["key"]
        api.delete(f"/api/keys/{made['id']}")


@pytest.fixture(scope="module")
def act(gateway: GatewayInfo) -> Iterator[str]:
    """A public app that does what a request asks for, on one runner; its URL."""
    options = {"max_concurrency": 1, "max_multiplexing": 8, "keep_alive": 60, "min_concurrency": 1}
    with deployed(ACT, serve=True, auth="public", **options) as handle:
        yield run_url(gateway, handle)


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A state folder of its own; whatever runs on it is ended at the end."""
    folder = tmp_path / "private-state"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("FAL_NOTEBOOK_STATE", str(folder))
    yield folder
    if processes_of(folder):
        stop(discovery.ensure(folder), folder)


@pytest.fixture
def own_gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A state folder whose gateway may be killed: the others' one is left alone."""
    state = tmp_path / "own-state"
    state.mkdir(mode=0o700)
    sync.wait(shared_client().close())
    with monkeypatch.context() as patch:
        patch.setenv("FAL_NOTEBOOK_STATE", str(state))
        yield state
        sync.wait(shared_client().stop_gateway())
        discovery.wait_until_gone(state)
    sync.wait(shared_client().close())


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """Runners without a gateway, forked by a zygote of the module's own."""
    bench = Bench(tmp_path_factory.mktemp("b"), tmp_path_factory.mktemp("s"), fork=True)
    yield bench
    bench.close()


class Shell:
    """A real IPython shell, driven cell by cell."""

    def __init__(self) -> None:
        from IPython.core.interactiveshell import InteractiveShell

        self.ip = InteractiveShell.instance()
        self.ip.reset(new_session=True)
        self.ip.run_line_magic("reload_ext", "fal_notebook")

    def run(self, source: str) -> Any:
        """Run a cell; return the value of its last expression, raise what it raised."""
        result = self.ip.run_cell(source, store_history=True)
        result.raise_error()
        return result.result

    def __getitem__(self, name: str) -> Any:
        return self.ip.user_ns[name]


@pytest.fixture
def shell(gateway: GatewayInfo) -> Iterator[Shell]:
    """A fresh notebook; the apps that it deployed are deleted at its end."""
    shell = Shell()
    yield shell
    for value in list(shell.ip.user_ns.values()):
        if isinstance(value, Handle):
            _delete(value)


def _delete(handle: Handle) -> None:
    from fal_notebook.exceptions import GatewayError

    try:
        handle.delete()
    except GatewayError:
        return


@pytest.fixture(name="eventually")
def eventually_fixture() -> Callable[[Callable[[], Any]], Any]:
    """Poll a condition, at most 20 s, and return its first true value."""
    return eventually


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB, on which the gateway's state lies."""
    folder = tmp_path / "small"
    folder.mkdir()
    with small_file_system(folder, "8m"):
        yield folder
