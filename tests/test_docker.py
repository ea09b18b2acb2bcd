"""Apps in containers, from the cell to the answer, with a real engine."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import docker
import httpx
import pytest
from serving import (
    cause_of_end,
    containers_of,
    control,
    deployed,
    eventually,
    start_gateway_again,
    steps,
)

from fal_notebook import discovery
from fal_notebook.backends.engine import HANGS
from fal_notebook.deploying import deploy
from fal_notebook.exceptions import DeployError, GatewayError
from fal_notebook.handle import Handle


@contextlib.contextmanager
def engine_that_hangs(docker_host: str) -> Iterator[tuple[str, threading.Event]]:
    """Give another address of an engine, where it answers from the event on."""
    ends = threading.Event()

    def copy(source: socket.socket, target: socket.socket) -> None:
        ends.wait()
        with source, contextlib.suppress(OSError):
            while piece := source.recv(65536):
                target.sendall(piece)
            target.shutdown(socket.SHUT_RDWR)

    def accept(server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = server.accept()
                far = socket.socket(socket.AF_UNIX)
                far.connect(docker_host.removeprefix("unix://"))
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=copy, args=pair, daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=accept, args=(server,), daemon=True).start()
        yield f"tcp://127.0.0.1:{server.getsockname()[1]}", ends
        ends.set()
        server.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def cells(containers: Path, shell: Any) -> Any:
    """A notebook whose apps are containers."""
    return shell


def test_a_cell_becomes_a_container_that_answers_over_http(cells: Any) -> None:
    cells.run("factor = 3")
    cells.run(
        "%%fal_function target=docker serve=true auth=public wait=true\n"
        "def triple(x: int) -> int:\n    return x * factor\n"
    )
    assert cells["triple"](5) == 15
    reply = httpx.post(cells["triple"].url, json={"x": 4})
    assert (reply.status_code, reply.json()) == (200, 12)


def test_load_starts_containers_and_silence_ends_them(
    cells: Any, engine: docker.APIClient, eventually: Any
) -> None:
    cells.run(
        "%%fal_function max_concurrency=2 keep_alive=0 wait=true\n"
        "def slow(x: int) -> str:\n    import socket, time; time.sleep(0.5)\n"
        "    return socket.gethostname()\n"
    )
    slow = cells["slow"]
    with ThreadPoolExecutor(6) as pool:
        hosts = set(pool.map(slow, range(6)))
    assert len(hosts) == 2
    assert eventually(lambda: slow.runners() == [])
    assert eventually(lambda: containers_of(engine, "slow") == [])


def test_what_is_in_flight_ends_before_its_container(
    containers: Path, engine: docker.APIClient, eventually: Any
) -> None:
    source = "def f(x: int):\n    import time; print('working'); time.sleep(1); return x"
    with deployed(source) as handle, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(handle, 7)
        eventually(lambda: handle.runners()[0]["in_flight"])
        with deployed(source + " + 1") as changed:
            assert answer.result(20) == 7
            assert changed(7) == 8
            eventually(lambda: len(containers_of(engine, "f")) == 1)


def test_a_gateway_killed_and_started_again_adopts_its_container(
    containers: Path, engine: docker.APIClient, eventually: Any
) -> None:
    source = (
        "import itertools, threading, time\n"
        "numbers = itertools.count()\n"
        "write = lambda x: [time.sleep(0.02) or print('line', n) for n in range(x)]\n"
        "def counted(x: int):\n"
        "    threading.Thread(target=write, args=(x,)).start(); return next(numbers)\n"
    )
    with deployed(source, keep_alive=300) as handle:
        assert handle(100) == 0
        (before,) = containers_of(engine, "counted")
        start_gateway_again(containers, eventually)
        assert handle(0) == 1
        (after,) = containers_of(engine, "counted")
        assert (after["Id"], after["RestartCount"]) == (before["Id"], 0)

        def lines() -> list[str]:
            return [x["message"] for x in handle.logs() if x["message"].startswith("line")]

        eventually(lambda: "line 99" in lines())
        assert lines() == [f"line {n}" for n in range(100)]
    eventually(lambda: containers_of(engine, "counted") == [])


def test_containers_reach_a_gateway_that_was_started_while_the_engine_hung(
    containers: Path, docker_host: str, monkeypatch: pytest.MonkeyPatch, eventually: Any
) -> None:
    source = (
        "import os, urllib.error, urllib.request\n"
        "def asks(x: int) -> str:\n"
        "    try: urllib.request.urlopen(os.environ['FAL_NOTEBOOK_URL'] + '/none', timeout=2)\n"
        "    except urllib.error.HTTPError as error: return str(error.code)\n"
        "    except OSError as error: return repr(error)\n"
    )
    with deployed(source, keep_alive=300) as handle, engine_that_hangs(docker_host) as (host, ends):
        assert handle(0) == "401"
        with monkeypatch.context() as patch:
            patch.setenv("DOCKER_HOST", host)
            start_gateway_again(containers, eventually)
        time.sleep(HANGS + 1)  # its questions have failed by then
        ends.set()
        eventually(lambda: handle(0) == "401")
        start_gateway_again(containers, eventually)


def test_what_a_killed_gateway_left_half_made_is_removed_and_nothing_else(
    containers: Path, engine: docker.APIClient, eventually: Any
) -> None:
    with deployed("def kept(x: int): return x", keep_alive=300) as handle:
        (own,) = containers_of(engine, "kept")
        labels = own["Config"]["Labels"]
        left = {**labels, "fal-notebook.runner": "gone"}
        foreign = {**left, "fal-notebook.state": "another gateway's"}
        image = own["Config"]["Image"]
        ids = [engine.create_container(image, labels=label)["Id"] for label in (left, foreign)]
        try:
            start_gateway_again(containers, eventually)
            assert handle(1) == 1
            eventually(lambda: ids[0] not in {c["Id"] for c in engine.containers(all=True)})
            assert {own["Id"], ids[1]} <= {c["Id"] for c in engine.containers(all=True)}
        finally:
            engine.remove_container(ids[1])


def test_a_container_has_no_privileges_and_the_limits_of_its_machine(
    containers: Path, engine: docker.APIClient
) -> None:
    source = (
        "def inside(x: int):\n"
        "    return [l for l in open('/proc/self/status') if l[:6] in ('CapEff', 'NoNewP')]"
    )
    with deployed(source, machine_type="S") as handle:
        assert [line.split()[1] for line in handle(1)] == ["0" * 16, "1"]
        (found,) = containers_of(engine, "inside")
        limits = found["HostConfig"]
        assert limits["Memory"] == limits["MemorySwap"] == 1024**3
        assert limits["CpuQuota"] == limits["CpuPeriod"]
        assert limits["PidsLimit"] > 0
        assert limits["Init"]
        assert not limits["PortBindings"]


def test_no_secret_of_a_runner_stands_in_its_container(
    containers: Path, engine: docker.APIClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOLD_AT_START", "xyzzy-plugh")
    source = (
        "def told(x: int):\n    import os; return [os.environ['TOLD_AT_START'], os.environ['PATH']]"
    )
    with deployed(source, pass_env=["TOLD_AT_START"]) as handle:
        assert handle(1)[0] == "xyzzy-plugh"
        assert "/usr/local/bin" in handle(1)[1]
        assert "xyzzy" not in str(containers_of(engine, "told"))
        assert "xyzzy" not in str(engine.history(containers_of(engine, "told")[0]["Image"]))


def test_a_runner_that_takes_too_much_memory_is_said_to_be_out_of_memory(
    containers: Path, eventually: Any
) -> None:
    source = "def greedy(x: int): return len(bytearray(x * 1024**2))"
    with deployed(source, machine_type="XS", keep_alive=300) as handle:
        assert handle(1) == 1024**2
        with pytest.raises(GatewayError, match="out of memory: it may have 512 MB"):
            handle(2000)
        for runner in handle.runners():
            assert "out of memory" in runner["cause"]
        cause = eventually(lambda: cause_of_end(containers, "greedy"))
        assert "out of memory" in cause
        assert "512 MB" in cause
        (failure,) = eventually(handle.errors)
        assert "out of memory" in failure["message"]
        with pytest.raises(GatewayError, match="out of memory: it may have 512 MB"):
            handle.with_options(no_retry=True).submit(2000).result()


def test_files_in_the_shared_storage_stay(containers: Path) -> None:
    source = (
        "def store(x: str):\n    import os, pathlib\n"
        "    file = pathlib.Path(os.environ['FAL_DATA_DIR'], 'kept')\n"
        "    file.write_text(x); return str(file)"
    )
    with deployed(source) as handle:
        assert handle("hello") == "/data/kept"
    assert (containers / "data" / "tester" / "kept").read_text() == "hello"


def test_files_of_an_app_are_its_own_in_every_container(containers: Path, tmp_path: Path) -> None:
    source = """
def changes() -> list[str]:
    import pathlib, brought_along
    path = pathlib.Path("d/b.txt")
    path.write_text(path.read_text() + "!")
    return [brought_along.SAYS, path.read_text()]
"""
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "b.txt").write_text("here")
    (tmp_path / "brought_along.py").write_text("SAYS = 'hello'")
    options = {"app_files": ["."], "app_files_context_dir": str(tmp_path), "keep_alive": 0}
    with deployed(source, **options) as changes:
        assert changes() == ["hello", "here!"]
        eventually(lambda: changes.runners() == [])
        assert changes() == ["hello", "here!"]


def test_requirements_are_a_layer_that_apps_share(
    containers: Path, engine: docker.APIClient
) -> None:
    with deployed("def one(x: int):\n    import cowsay; return 1", requirements=["cowsay"]) as one:
        assert one(1) == 1
        with deployed("def two(x: int): return 2", requirements=["cowsay"]) as two:
            assert two(1) == 2
            layers = [_layers(engine, app) for app in ("one", "two")]
            assert layers[0][:-1] == layers[1][:-1]
            assert layers[0][-1] != layers[1][-1]


def _layers(engine: docker.APIClient, app: str) -> list[str]:
    (container,) = containers_of(engine, app)
    return list(engine.inspect_image(container["Image"])["RootFS"]["Layers"])


def test_without_requirements_the_image_has_what_the_code_imports(
    cells: Any, containers: Path, capsys: Any
) -> None:
    import msgpack

    cells.run(
        "%%fal_function wait=true force=true\n"
        "def packed(x: int):\n    import msgpack, sys\n"
        "    return [msgpack.version, msgpack.__file__]\n"
    )
    found, file = cells["packed"](1)
    assert tuple(found) == msgpack.version
    assert "site-packages" in file
    said = capsys.readouterr().out
    assert f"msgpack=={'.'.join(map(str, msgpack.version))}" in said
    assert "Step 1/" in steps(containers, "packed")


def test_an_unchanged_cell_builds_nothing_and_a_changed_one_its_last_layer(
    cells: Any, engine: docker.APIClient
) -> None:
    cell = "%%fal_function wait=true\ndef built(x: int):\n    return x + 1\n"
    cells.run(cell)
    before, layers = containers_of(engine, "built"), _layers(engine, "built")
    cells.run(cell)
    assert containers_of(engine, "built")[0]["Id"] == before[0]["Id"]
    cells.run(cell.replace("+ 1", "+ 2"))
    assert cells["built"](1) == 3
    newest = max(containers_of(engine, "built"), key=lambda found: found["Created"])
    changed = engine.inspect_image(newest["Image"])["RootFS"]["Layers"]
    assert changed[:-1] == layers[:-1]
    assert changed[-1] != layers[-1]


def test_a_change_of_target_is_a_new_revision(cells: Any) -> None:
    code = "def moved(x: int):\n    import os; return os.getcwd()\n"
    cell = "%%fal_function target={} wait=true\n" + code
    cells.run(cell.format("docker"))
    assert cells["moved"](1) == "/app"
    cells.run(cell.format("local"))
    assert cells["moved"](1) != "/app"
    assert cells["moved"].status()["number"] == 2


CALLING = """
import json, os, urllib.error, urllib.request
def ask(path: str, authorization: str):
    url = os.environ["FAL_NOTEBOOK_URL"] + path
    authorization = authorization or "Key " + os.environ["FAL_KEY"]
    headers = {"Authorization": authorization, "Content-Type": "application/json"}
    request = urllib.request.Request(url, b'{"x": 4}', headers)
    try:
        with urllib.request.urlopen(request) as reply:
            return [reply.status, json.loads(reply.read())]
    except urllib.error.HTTPError as error:
        return [error.code, error.read().decode()]
"""


def test_a_container_calls_other_apps_with_its_own_key_and_no_other(containers: Path) -> None:
    with (
        deployed("def other(x: int): return x * 2", target="local"),
        deployed(CALLING, keep_alive=300) as handle,
    ):
        assert handle("/run/tester/other", "") == [200, 8]
        assert handle("/api/apps", "")[0] == 403
        info = discovery.find(containers)
        assert info is not None
        for path in ("/run/tester/other", "/api/apps"):
            status, why = handle(path, f"Bearer {info.token}")
            assert status == 403
            assert "only keys of runners" in why


def test_a_container_calls_others_also_when_the_gateway_was_started_again(
    containers: Path, eventually: Any
) -> None:
    source = "def second(x: int):\n    return other(x) + 1\n"
    with deployed("def other(x: int): return x * 2", target="local") as other:
        names = {"other": other, "__name__": "__main__"}
        exec(source, names)
        handle = deploy(names["second"], wait=True, keep_alive=300)
        assert handle(1) == 3
        start_gateway_again(containers, eventually)
        assert handle(2) == 5
        handle.delete()


def test_a_container_stores_and_reads_files_under_urls_of_everybody(containers: Path) -> None:
    source = (
        "def stored(text: str = '', url: str = ''):\n"
        "    from fal_notebook.toolkit import File, download_file\n"
        "    if url:\n"
        "        return download_file(url, '/tmp', force=True).read_text()\n"
        "    return File.from_bytes(text.encode()).url\n"
    )
    with deployed(source) as handle:
        gateway = discovery.ensure(containers)
        url = handle("hello")
        assert url.startswith(f"{gateway.url}/storage/files/")
        assert httpx.get(url).text == handle(url=url) == "hello"
        with control(gateway) as api:
            ours = api.post("/storage/files", content=b"of a caller").json()["url"]
        assert handle(url=ours) == "of a caller"


def test_without_its_engine_the_gateway_serves_all_else_and_recovers(
    containers: Path, docker_host: str, eventually: Any
) -> None:
    script = ["bash", str(Path(__file__).parent / "docker" / "engine.sh")]
    if docker_host == "unix:///var/run/docker.sock":
        pytest.skip("the engine of this machine is not stopped for a test")
    with (
        deployed("def lost(x: int): return x", keep_alive=300) as lost,
        deployed("def stays(x: int): return x", target="local", keep_alive=300) as stays,
    ):
        assert (lost(1), stays(1)) == (1, 1)
        subprocess.run([*script, "stop"], check=True)
        try:
            assert stays(2) == 2
            with pytest.raises(GatewayError, match=r"the Docker engine|no Docker engine"):
                lost(2)
            with (
                pytest.raises(DeployError, match=r"no Docker engine at .* target=local"),
                deployed("def never(x: int): return x"),
            ):
                pass
            assert stays(3) == 3
        finally:
            subprocess.run([*script, "start"], check=True)
        assert eventually(lambda: _answer(lost, 3), timeout=60) == 3


def _answer(handle: Handle, value: int) -> int | None:
    try:
        return int(handle(value))
    except GatewayError:
        return None


def test_servers_of_ones_own_are_several_containers_with_one_port(
    cells: Any, eventually: Any
) -> None:
    cells.run(
        "%%fal_server files exposed_port=8080 wait=true auth=public min_concurrency=2\n"
        "hostname > index.html; exec python3 -m http.server 8080\n"
    )
    files = cells["files"]
    eventually(lambda: [runner["state"] for runner in files.runners()] == ["IDLE", "IDLE"])

    def answers(pool: ThreadPoolExecutor) -> set[str]:
        return {reply.text for reply in pool.map(lambda _: httpx.get(files.url), range(8))}

    with ThreadPoolExecutor(4) as pool:
        assert len(eventually(lambda: found if len(found := answers(pool)) > 1 else None)) == 2


def test_a_server_that_its_container_hides_is_told_where_it_listens(cells: Any) -> None:
    with pytest.raises(Exception, match=r"127.0.0.1:8000 and not on 0.0.0.0:8000"):
        cells.run(
            "%%fal_server hidden exposed_port=8000 target=docker wait=true startup_timeout=3\n"
            "python3 -m http.server --bind 127.0.0.1 8000\n"
        )


APP = """%%fal_app wait=true
import fal_notebook as fal

class Counting(fal.App):
    def setup(self):
        self.calls = 0

    @fal.endpoint("/add")
    def add(self, x: int) -> int:
        self.calls += x
        return self.calls
"""


def test_an_app_is_a_container_too(cells: Any) -> None:
    cells.run(APP)
    assert [cells["Counting"].add(2), cells["Counting"].add(3)] == [2, 5]
