"""Direct Server Mode with images: they run untouched, watched from outside; with a real engine."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import docker
import httpx
import pytest
from serving import cause_of_end, containers_of, start_gateway_again
from websockets.sync.client import connect

from fal_notebook import cli, deploying, settings
from fal_notebook.backends.untouched import brings_init, listening, where
from fal_notebook.container import ContainerImage
from fal_notebook.discovery import published
from fal_notebook.display import DeployView
from fal_notebook.exceptions import NotFoundError, OptionError
from fal_notebook.options import split_options
from fal_notebook.server_handle import ServerHandle
from fal_notebook.server_image import (
    ServerImage,
    begins_like_dockerfile,
    is_dockerfile,
    of_reference,
)

Eventually = Callable[[Callable[[], Any]], Any]
BASE = "python:{}.{}-slim".format(*sys.version_info)
IMAGE = "fal-notebook-tests/raw-server:latest"
DOCKERFILE = f"""
FROM {BASE}
RUN echo "someone:x:4321:4321::/:/bin/sh" >> /etc/passwd && mkdir -p /srv/own
COPY raw_server.py /srv/raw_server.py
ENV FROM_IMAGE=yes
WORKDIR /srv/own
USER someone
EXPOSE 8000
ENTRYPOINT ["python3", "-u", "/srv/raw_server.py"]
CMD ["8000", "0.0.0.0"]
"""
ABOUT = """
import http.server, json, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        told = [os.getcwd(), os.getuid(), dict(os.environ), os.uname().nodename, os.getpid()]
        body = json.dumps(told).encode()
        self.send_response(200); self.end_headers(); self.wfile.write(body)
print("about to serve", flush=True)
http.server.ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def image(engine: docker.APIClient) -> Iterator[str]:
    """An image with a server, as somebody else made it."""
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as archive:
        archive.add(Path(__file__).with_name("raw_server.py"), "raw_server.py")
        entry = tarfile.TarInfo("Dockerfile")
        entry.size = len(DOCKERFILE)
        archive.addfile(entry, io.BytesIO(DOCKERFILE.encode()))
    context.seek(0)
    built = engine.build(fileobj=context, custom_context=True, tag=IMAGE, forcerm=True, decode=True)
    errors = [line["error"] for line in built if "error" in line]
    assert not errors
    yield IMAGE
    engine.remove_image(IMAGE, force=True)


@contextlib.contextmanager
def served(name: str, image: str | ContainerImage, **options: Any) -> Iterator[ServerHandle]:
    """Deploy a server that is an image; delete it at the end."""
    options = {"exposed_port": 8000, "wait": True, **options}
    handle = deploying.deploy(name=name, image=image, **options)
    assert isinstance(handle, ServerHandle)
    try:
        yield handle
    finally:
        with contextlib.suppress(NotFoundError):
            handle.delete()


@pytest.fixture(scope="module")
def raw(containers: Path, image: str) -> Iterator[ServerHandle]:
    """One server that several tests share and none ends."""
    with served("raw", image, keep_alive=300, max_multiplexing=8) as handle:
        yield handle


@pytest.fixture
def cells(containers: Path, shell: Any) -> Any:
    """A notebook whose apps are containers."""
    return shell


def told(handle: ServerHandle) -> list[Any]:
    """Return working folder, user, variables, host and process of a server that tells them."""
    return list(handle.request("GET", "/").json())


def about(**fields: Any) -> ContainerImage:
    """Return the image of such a server."""
    quoted = ABOUT.replace("\n", "\\n").replace('"', '\\"')
    text = f'FROM {BASE}\nRUN mkdir /own && printf "{quoted}" > /own/about.py\n'
    return ContainerImage(f'{text}WORKDIR /own\nCMD ["python3", "about.py"]\n', **fields)


# --- from the cell to the answer -----------------------------------------------------------------
def test_an_image_is_a_server_behind_a_url(cells: Any, image: str) -> None:
    cells.run(f'%%fal_server plain exposed_port=8000 image="{image}" wait=true auth=public\n')
    answer = cells["plain"].request("GET", "/a/b?c=1")
    assert (answer.status_code, answer.text.splitlines()[0]) == (200, "GET /a/b?c=1 HTTP/1.1")
    assert httpx.get(cells["plain"].url + "/x").status_code == 200


def test_a_dockerfile_as_the_cell_is_built_beside_the_notebook(
    cells: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JPY_SESSION_NAME", str(tmp_path / "a.ipynb"))
    (tmp_path / "hello.txt").write_text("hello\n")
    dockerfile = f"FROM {BASE}\nWORKDIR /www\nCOPY hello.txt .\nCMD python3 -m http.server $PORT\n"
    cells.run(f"%%fal_server web exposed_port=8000 wait=true\n# what it serves\n{dockerfile}")
    assert cells["web"].request("GET", "/hello.txt").text == "hello\n"
    (tmp_path / "hello.txt").write_text("changed\n")
    cells.run(f"%%fal_server web exposed_port=8000 lang=dockerfile wait=true\n{dockerfile}")
    assert cells["web"].request("GET", "/hello.txt").text == "changed\n"
    assert cells["web"].status()["number"] == 2


def test_a_dockerfile_may_be_written_in_lower_case(cells: Any, image: str) -> None:
    cells.run(f"%%fal_server lower exposed_port=8000 wait=true\nfrom {image}\nenv LOWER=yes\n")
    assert cells["lower"].request("GET", "/").status_code == 200


def test_a_slow_step_is_seen_as_it_goes_on(containers: Path, image: str) -> None:
    slow = f"FROM {image}\nRUN echo {time.time()}; for i in 1 2 3; do echo tick $i; sleep 1; done\n"
    server, shown = ServerImage("slow", ContainerImage(slow)), list[str]()
    options, cell = split_options({"image": server.image, "exposed_port": 8000, "wait": True})

    def look() -> None:
        with contextlib.suppress(NameError):  # before the deploy is accepted
            shown.append(repr(DeployView(deployment.progress)))

    deployment = deploying.start(server, options, cell, on_change=look)
    deployment.handle.wait()
    text = "\n".join(shown)
    for mark in ("tick 1", "tick 2", "tick 3"):
        assert re.search(rf"Step 2/3 : RUN .*\n +██████░{{14}} [0-3] s  {mark}", text)
    assert re.search(r"Step 2/3 : RUN .* \([34]\.\d s\)\n", text)
    assert len(shown) < 40
    deployment.handle.delete()


def test_cmd_and_entrypoint_take_the_place_of_the_images(cells: Any, image: str) -> None:
    cells.run(
        f'%%fal_server other exposed_port=9000 image={image} cmd=["9000","0.0.0.0"] wait=true\n'
    )
    assert cells["other"].request("GET", "/").status_code == 200
    cells.run(
        f"%%fal_server other exposed_port=9000 image={image} wait=true "
        'entrypoint="python3 -m http.server" cmd=["9000"]\n'
    )
    assert "Directory listing" in cells["other"].request("GET", "/").text


def test_a_command_in_the_cell_runs_in_the_image_beside_a_runner(
    cells: Any, image: str, engine: docker.APIClient
) -> None:
    command = "exec python3 -u /srv/raw_server.py $PORT 0.0.0.0"
    cells.run(f"%%fal_server both exposed_port=8000 image={image} wait=true\n{command}\n")
    assert cells["both"].request("GET", "/").status_code == 200
    (container,) = containers_of(engine, "both")
    assert "contained" in container["Config"]["Entrypoint"]


def test_a_dry_run_shows_the_image_and_deploys_nothing(
    cells: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    cells.run("%%fal_server dry exposed_port=8000 dry_run=true\nFROM no-such/image\n")
    assert "image" in capsys.readouterr().out
    assert "dry" not in cells.ip.user_ns


def test_an_unchanged_cell_is_up_to_date_and_another_cmd_is_a_new_revision(
    cells: Any, image: str
) -> None:
    cell = f"%%fal_server same exposed_port=8000 image={image} wait=true cmd="
    for command, number in (
        ("['8000','0.0.0.0']", 1),
        ("['8000','0.0.0.0']", 1),
        ("['8000','']", 2),
    ):
        cells.run(f"{cell}{command}\n")
        assert cells["same"].status()["number"] == number


# --- nothing of ours is inside -------------------------------------------------------------------
def test_the_image_runs_with_its_own_user_folder_and_variables(
    raw: ServerHandle, engine: docker.APIClient, image: str
) -> None:
    (container,) = containers_of(engine, "raw")
    config, own = container["Config"], engine.inspect_image(image)
    assert container["Image"] == own["Id"]
    for name in ("Entrypoint", "Cmd", "User", "WorkingDir"):
        assert config[name] == own["Config"][name]
    variables = dict(item.split("=", 1) for item in config["Env"])
    assert variables["FROM_IMAGE"] == "yes"
    assert variables["PORT"] == "8000"
    assert variables["FAL_APP_NAME"] == "raw"
    limits = container["HostConfig"]
    assert limits["CapDrop"] == ["ALL"]
    assert limits["Memory"] == limits["MemorySwap"] == 512 * 1024**2
    assert not limits["PortBindings"]


def test_a_server_sees_its_variables_its_secrets_and_the_shared_storage(
    containers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVER_TOKEN", "xyzzy-plugh")
    cli.run(["secrets", "set", "SERVER_TOKEN", "--from-env"], "fal-notebook")
    with served("told", about(), secrets=["SERVER_TOKEN"]) as handle:
        folder, _, variables, host, _ = told(handle)
        assert folder == "/own"
        assert variables["SERVER_TOKEN"] == "xyzzy-plugh"
        assert variables["FAL_DATA_DIR"] == "/data"
        assert variables["FAL_JOB_ID"] == handle.runners()[0]["id"]
        assert len(host) == 12
        assert "about to serve" in [line["message"] for line in handle.logs()]


def test_an_image_without_python_or_shell_is_a_server(
    containers: Path, engine: docker.APIClient, tmp_path: Path
) -> None:
    """A program alone: neither `sh` nor `cat` is there to ask it anything."""
    if shutil.which("gcc") is None:
        pytest.xfail("there is no compiler here")
    source = tmp_path / "server.c"
    source.write_text(STATIC)
    subprocess.run(["gcc", "-static", "-o", tmp_path / "server", source], check=True)
    image = ContainerImage(
        'FROM scratch\nCOPY server /server\nENTRYPOINT ["/server"]\n', context_dir=str(tmp_path)
    )
    with served("alone", image) as handle:
        assert handle.request("GET", "/").text == "static\n"
    with pytest.raises(Exception, match=r"listens on 0.0.0.0:8000 and not on 0.0.0.0:8001"):
        deploying.deploy(name="alone", image=image, exposed_port=8001, startup_timeout=4, wait=True)


STATIC = r"""
#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
int main(void) {
    char got[4096];
    const char *text = "HTTP/1.0 200 OK\r\nContent-Length: 7\r\n\r\nstatic\n";
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(8000)};
    int one = 1, server = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(server, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    bind(server, (struct sockaddr *)&address, sizeof address);
    listen(server, 8);
    for (;;) {
        int caller = accept(server, 0, 0);
        if (read(caller, got, sizeof got) > 0 && write(caller, text, strlen(text)) < 0) exit(1);
        close(caller);
    }
}
"""


# --- what goes through ---------------------------------------------------------------------------
def test_events_come_as_they_are_sent(raw: ServerHandle) -> None:
    headers = {"authorization": f"Bearer {_token()}"}
    with httpx.stream("GET", raw.url + "/events", headers=headers, timeout=20) as reply:
        lines = reply.iter_lines()
        assert next(lines) == "data: 1"
        assert raw.request("GET", "/go").status_code == 200
        assert "data: 2" in list(lines)


def test_a_websocket_goes_through(raw: ServerHandle) -> None:
    url = raw.url.replace("http:", "ws:") + "/websocket"
    headers = {"authorization": f"Bearer {_token()}"}
    with connect(url, additional_headers=headers, subprotocols=["chat"]) as socket:  # type: ignore[list-item]
        assert b"GET /websocket" in socket.recv()  # type: ignore[operator]


def _token() -> str:
    info = published(settings.state_folder())
    assert info is not None
    return info.token


def test_several_containers_are_behind_one_url(containers: Path, eventually: Eventually) -> None:
    with served("several", about(), min_concurrency=2, max_concurrency=2) as handle:
        eventually(lambda: [r["state"] for r in handle.runners()] == ["IDLE", "IDLE"])

        def hosts() -> set[str]:
            with ThreadPoolExecutor(4) as pool:
                return {host for *_, host, _ in pool.map(lambda _: told(handle), range(12))}

        eventually(lambda: len(hosts()) == 2)


# --- its end -------------------------------------------------------------------------------------
def test_what_is_in_flight_is_answered_before_the_container_is_told_to_end(
    containers: Path, image: str, engine: docker.APIClient, eventually: Eventually
) -> None:
    with served("slow", image, keep_alive=300) as handle, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(handle.request, "GET", "/slow")
        eventually(lambda: handle.runners()[0]["in_flight"])
        changed = of_reference(image, cmd=["8000", "0.0.0.0"])
        with served("slow", changed, min_concurrency=1):
            assert answer.result(20).text == "slow"
            eventually(lambda: len(containers_of(engine, "slow")) == 1)
            cause = eventually(lambda: cause_of_end(containers, "slow"))
            assert "revision 2 took over" in cause


def test_one_that_does_not_end_is_killed_when_its_grace_is_spent(
    containers: Path, engine: docker.APIClient, eventually: Eventually, image: str
) -> None:
    stubborn = ContainerImage(f"FROM {image}\nENV IGNORE_SIGTERM=1\n")
    with served("stubborn", stubborn, termination_grace_period_seconds=1):
        pass
    eventually(lambda: containers_of(engine, "stubborn") == [])
    cause = eventually(lambda: cause_of_end(containers, "stubborn"))
    assert "termination_grace_period_seconds is spent" in cause


def test_a_gateway_killed_and_started_again_adopts_the_container(
    containers: Path, image: str, engine: docker.APIClient, eventually: Eventually
) -> None:
    with served("kept", image, keep_alive=300) as handle:
        (before,) = containers_of(engine, "kept")
        start_gateway_again(containers, eventually)
        assert handle.request("GET", "/").status_code == 200
        (after,) = containers_of(engine, "kept")
        assert (after["Id"], after["RestartCount"]) == (before["Id"], 0)
        eventually(lambda: handle.runners()[0]["state"] == "IDLE")
    eventually(lambda: containers_of(engine, "kept") == [])


def test_an_adopted_container_that_is_still_starting_becomes_ready(
    containers: Path, engine: docker.APIClient, eventually: Eventually, image: str
) -> None:
    waiting = (
        "while [ ! -e /data/go ]; do sleep 0.05; done; exec python3 /srv/raw_server.py 8000 0.0.0.0"
    )
    with served("late", image, keep_alive=300) as handle:
        late = of_reference(image, entrypoint=["sh", "-c", waiting])
        go = containers / "data" / "tester" / "go"
        go.touch()
        with served("late", late, keep_alive=0, max_concurrency=1):
            eventually(lambda: handle.runners() == [])
            go.unlink()
            with ThreadPoolExecutor(1) as pool:
                pool.submit(lambda: contextlib.suppress(Exception) and handle.request("GET", "/"))
                eventually(lambda: [r["state"] for r in handle.runners()] == ["SETUP"])
                (before,) = containers_of(engine, "late")
                start_gateway_again(containers, eventually)
                go.touch()
                assert handle.request("GET", "/").status_code == 200
        go.unlink()
        assert before["Id"]


def test_a_container_that_ended_without_a_gateway_is_replaced(
    containers: Path, image: str, engine: docker.APIClient, eventually: Eventually
) -> None:
    with served("lost", image, min_concurrency=1) as handle:
        (before,) = containers_of(engine, "lost")
        assert handle.request("GET", "/").status_code == 200
        engine.kill(before["Id"])
        eventually(lambda: handle.request("GET", "/").status_code == 200)
        eventually(lambda: before["Id"] not in [c["Id"] for c in containers_of(engine, "lost")])
        cause = eventually(lambda: cause_of_end(containers, "lost"))
        assert "the server ended with SIGKILL" in cause


# --- what may be wrong ---------------------------------------------------------------------------
def failing(name: str, image: str | ContainerImage, match: str, **options: Any) -> str:
    """Deploy what cannot be deployed; return all that the error says."""
    with pytest.raises(Exception, match=match) as failure:
        deploying.deploy(name=name, image=image, wait=True, **{"exposed_port": 8000, **options})
    return str(failure.value)


@pytest.mark.parametrize(
    ("command", "found"),
    [
        (["8000", "127.0.0.1"], r"listens on 127\.0\.0\.1:8000 .* 0\.0\.0\.0:8000"),
        (["9000", "0.0.0.0"], r"listens on 0\.0\.0\.0:9000 and not on 0\.0\.0\.0:8000"),
    ],
)
def test_a_server_on_another_address_is_told_which(
    containers: Path, image: str, command: list[str], found: str
) -> None:
    failing("astray", of_reference(image, cmd=command), found, startup_timeout=4)


def test_a_server_that_opens_no_port_is_told_so(containers: Path, image: str) -> None:
    silent = of_reference(image, entrypoint=["sleep", "100"])
    failing("silent", silent, r"has not opened a port", startup_timeout=3)


def test_a_command_that_ends_is_an_error_with_its_status_and_last_lines(
    containers: Path, image: str, engine: docker.APIClient, eventually: Eventually
) -> None:
    broken = of_reference(image, entrypoint=["sh", "-c", "echo no model here; exit 3"])
    said = failing("broken", broken, r"ended with exit status 3 before it opened port 8000")
    assert "no model here" in said
    eventually(lambda: containers_of(engine, "broken") == [])


def test_an_image_whose_command_is_no_server_is_told_to_give_one(containers: Path) -> None:
    failing("empty", BASE, r"exit status 0 before it opened port 8000.*cmd=")


def test_an_image_without_a_command_is_told_to_give_one(containers: Path, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    bare = ContainerImage("FROM scratch\nCOPY a /a\n", context_dir=str(tmp_path))
    failing("bare", bare, r"names no program: write CMD into the Dockerfile, or give cmd=")


def test_a_command_that_is_not_there_is_named(containers: Path, image: str) -> None:
    failing("nowhere", of_reference(image, entrypoint=["no-such-server"]), r"no-such-server")


def test_a_server_that_takes_too_much_memory_is_said_to_be_out_of_memory(
    containers: Path, image: str
) -> None:
    greedy = of_reference(image, entrypoint=["python3", "-c", "bytearray(2 << 30)"])
    failing("greedy", greedy, r"ended before it opened port 8000, out of memory: it may have 512")


def test_a_failed_revision_leaves_the_one_before_serving(containers: Path, image: str) -> None:
    with served("firm", image, keep_alive=300) as handle:
        failing("firm", of_reference(image, entrypoint=["false"]), "exit status 1")
        assert handle.request("GET", "/").status_code == 200


@pytest.mark.parametrize(
    ("line", "cell", "why"),
    [
        ("exposed_port=8000", "", "the cell is empty"),
        ("image=a/b", "", "exposed_port is missing"),
        ("exposed_port=8000 image=a/b", "FROM a/b\n", "give one of them"),
        ("exposed_port=8000 cmd=x", "sleep 1\n", "cmd is for images"),
        ("exposed_port=8000 lang=dockerfile", "echo\n", "FROM line"),
        ("exposed_port=8000 image=a/b target=local", "", "target=local"),
        ("exposed_port=8000", "FROM\n", "begins like a Dockerfile.* lang=dockerfile"),
        ("exposed_port=8000", "RUN true\nCMD x\n", "begins like a Dockerfile.* lang=dockerfile"),
        ("exposed_port=8000", "# syntax=a/b\nrun c\n", "begins like a Dockerfile"),
        ("exposed_port=8000 image=a/b cmd=3", "", "cmd=3"),
        ('exposed_port=8000 image=a/b cmd="a \'b"', "", "a quote that has no end"),
    ],
)
def test_what_contradicts_itself_is_refused(cells: Any, line: str, cell: str, why: str) -> None:
    with pytest.raises(Exception, match=why):
        cells.run(f"%%fal_server wrong {line}\n{cell}")


def test_without_a_function_a_deploy_needs_image_port_and_name() -> None:
    for values, lacking in (
        ({"exposed_port": 8000, "name": "a"}, "image"),
        ({"image": "a/b", "name": "a"}, "exposed_port"),
        ({"image": "a/b", "exposed_port": 8000}, "name"),
    ):
        with pytest.raises(OptionError, match=lacking):
            deploying.deploy(**values)  # type: ignore[arg-type]


# --- pure parts ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("FROM a", True),
        ("# syntax=docker/dockerfile:1\n\nARG A=1\nFROM a", True),
        ("FROM --platform=linux/amd64 a AS b", True),
        ("python -m http.server", False),
        ("from python:3.11-slim\ncmd x", True),
        ("# comment\narg TAG=1\nARG B\nFrom --platform=linux/amd64 python:$TAG as b\n", True),
        ("arg TAG=1\nfrom python:${TAG}", True),
        ("from fastapi import FastAPI", False),
        ("from fastapi \\\n import FastAPI", False),
        ("from a import (\nb)", False),
        ("from", False),
        ("from -f mail", False),
        ("arg=1\nfrom a", False),
        ("arg TAG=1\necho", False),
        ("echo FROM", False),
        ("# FROM a\necho", False),
        ("", False),
    ],
)
def test_a_dockerfile_is_known_by_its_first_instruction(cell: str, expected: bool) -> None:
    assert is_dockerfile(cell) is expected


def test_what_the_magic_is_told_to_run_is_not_taken_for_a_dockerfile() -> None:
    assert not begins_like_dockerfile("python -m http.server\n")
    assert not begins_like_dockerfile("ENV=1 RUNS\n")
    assert begins_like_dockerfile("\n# a comment\n  RUN true\n")


def test_a_reference_is_an_image_of_one_line() -> None:
    image = of_reference("my-org/my-server:latest", cmd="serve --port 8000")
    assert image.dockerfile_str == "FROM my-org/my-server:latest\n"
    assert image.cmd == "serve --port 8000"


TCP = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid
   0: 0100007F:1F40 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0
   1: 00000000:2328 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0
   2: 030011AC:1F40 010011AC:D2F0 01 00000000:00000000 00:00000000 00000000     0
   3: 0B00007F:A2F0 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0
  sl  local_address                         remote_address                        st
   0: 00000000000000000000000000000000:1F41 00000000000000000000000000000000:0000 0A 0
   1: 00000000000000000000000001000000:1F42 00000000000000000000000000000000:0000 0A 0
   2: 0000000000000000FFFF00000100007F:1F43 00000000000000000000000000000000:0000 0A 0
cat: /proc/net/nothing: No such file or directory
"""


@pytest.mark.skipif(sys.byteorder != "little", reason="the table is of a little-endian machine")
def test_the_kernels_table_of_sockets_is_read() -> None:
    expected = {
        ("127.0.0.1", 8000),
        ("0.0.0.0", 9000),
        ("::", 8001),
        ("::1", 8002),
        ("127.0.0.1", 8003),
    }
    assert listening(TCP) == expected
    assert listening("") == listening("OCI runtime exec failed: 0: no") == set()


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (set(), "has not opened a port yet"),
        ({("127.0.0.1", 8000)}, "listens on 127.0.0.1:8000 and not on 0.0.0.0:8000"),
        ({("0.0.0.0", 8000), ("0.0.0.0", 80)}, "^$"),
        ({("::", 8000)}, "^$"),
        ({("0.0.0.0", 80), ("::1", 81)}, r"listens on 0.0.0.0:80, \[::1\]:81 and not on"),
    ],
)
def test_where_a_server_listens_is_said_in_one_sentence(
    found: set[tuple[str, int]], said: str
) -> None:
    assert re.search(said, where(found, 8000))


@pytest.mark.parametrize(
    ("entrypoint", "expected"),
    [
        (["/init"], True),
        (["/usr/bin/tini", "--", "serve"], True),
        (["dumb-init", "serve"], True),
        (["/sbin/my_init"], True),
        (["docker-entrypoint.sh"], False),
        (["/usr/bin/initdb-and-serve"], False),
        (None, False),
    ],
)
def test_an_image_with_an_init_of_its_own_has_no_second_one(
    entrypoint: list[str] | None, expected: bool
) -> None:
    assert brings_init(entrypoint) is expected


def test_the_payload_of_an_image_holds_its_description_and_no_code() -> None:
    image = of_reference("a/b", cmd=["serve"])
    one, two = (ServerImage("x", each).capture({}, (), {}) for each in (image, of_reference("a/b")))
    assert one.manifest["kind"] == "image"
    assert one.digest != two.digest
