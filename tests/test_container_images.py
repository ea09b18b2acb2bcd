"""Images of the user's own: Dockerfiles in the manner of public ones, what of them goes wrong."""

from __future__ import annotations

import contextlib
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker
import psutil
import pytest
from effects import effect_of, given
from serving import containers_of, deployed, start_gateway_again, steps

from fal_notebook import deploying, sync
from fal_notebook.backends import buildkit, image_python
from fal_notebook.backends.buildkit import Steps
from fal_notebook.backends.containers import STATE
from fal_notebook.container import ContainerImage
from fal_notebook.exceptions import BuildError, DeployError, NotFoundError, OptionError
from fal_notebook.handle import Handle, shared_client

Eventually = Callable[[Callable[[], Any]], Any]
BASE = "python:{}.{}-slim".format(*sys.version_info)
SOURCE = "def inside(x: int):\n    return x + 1\n"
READING = "def read(path: str):\n    return open(path).read()\n"


def folder(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def image(text: str, root: Path | None = None, **fields: Any) -> ContainerImage:
    context = {"context_dir": root} if root else {}
    return ContainerImage.from_dockerfile_str(text.replace("BASE", BASE), **context, **fields)


@pytest.fixture(scope="module")
def old(containers: Path) -> Iterator[Handle]:
    """An app that serves whatever becomes of its next revisions."""
    with deployed(SOURCE, image=BASE, keep_alive=300, name="old") as handle:
        yield handle


@contextlib.contextmanager
def server(text: str, root: Path, port: int = 8000, **fields: Any) -> Iterator[Handle]:
    """Deploy what a Dockerfile describes as a server; delete it at the end."""
    own = image(text, root, **fields)
    handle = deploying.deploy(name="public", image=own, exposed_port=port, wait=True)
    try:
        yield handle
    finally:
        with contextlib.suppress(NotFoundError):
            handle.delete()


@effect_of("image")
def test_a_function_runs_in_the_image_that_is_given(containers: Path) -> None:
    source = "def effect() -> str:\n    import os\n    return os.environ.get('OF_IMAGE', '')\n"
    with deployed(source, **given(image=image("FROM BASE\nENV OF_IMAGE=seen"))) as effect:
        assert effect() == "seen"


# --- ten Dockerfiles as people publish them ------------------------------------------------------
FASTAPI = """
FROM BASE
WORKDIR /code
COPY ./requirements.txt /code/requirements.txt
RUN pip install --no-cache-dir --upgrade -r /code/requirements.txt
COPY ./app /code/app
CMD ["uvicorn", "app.main:app", "--host", "0.0.0.0", "--port", "80"]
"""
FLASK = """
# syntax=docker/dockerfile:1
FROM BASE
WORKDIR /python-docker
COPY requirements.txt requirements.txt
RUN pip3 install -r requirements.txt
COPY . .
ENV FLASK_APP=app.py
CMD [ "python3", "-m" , "flask", "run", "--host=0.0.0.0"]
"""
SPACE = """
FROM BASE
RUN useradd -m -u 1000 user
USER user
ENV HOME=/home/user \\
    PATH=/home/user/.local/bin:$PATH
WORKDIR $HOME/app
COPY --chown=user . $HOME/app
EXPOSE 7860
CMD ["python", "app.py"]
"""
NGINX = """
FROM BASE
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends nginx-light \\
    && rm -rf /var/lib/apt/lists/* \\
    && ln -sf /dev/stdout /var/log/nginx/access.log && ln -sf /dev/stderr /var/log/nginx/error.log
COPY nginx.conf /etc/nginx/nginx.conf
COPY html /usr/share/nginx/html
EXPOSE 8080
STOPSIGNAL SIGQUIT
USER www-data
CMD ["nginx", "-g", "daemon off;"]
"""
NGINX_CONF = """
pid /tmp/nginx.pid;
events {}
http {
    client_body_temp_path /tmp/body; proxy_temp_path /tmp/proxy; fastcgi_temp_path /tmp/fastcgi;
    uwsgi_temp_path /tmp/uwsgi; scgi_temp_path /tmp/scgi;
    server { listen 8080; root /usr/share/nginx/html; }
}
"""
ENTRYPOINT = """
FROM BASE
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
COPY docker-entrypoint.sh /usr/local/bin/
RUN chmod +x /usr/local/bin/docker-entrypoint.sh && ln -s /usr/local/bin/docker-entrypoint.sh /
ENTRYPOINT ["docker-entrypoint.sh"]
VOLUME /var/lib/www
HEALTHCHECK --interval=30s CMD true
LABEL org.opencontainers.image.title="served"
CMD ["python3", "-m", "http.server", "8000", "--directory", "/tmp/www"]
"""
SCRIPT = """#!/bin/bash
set -e
mkdir -p /tmp/www && echo "prepared by $0" > /tmp/www/index.html
exec "$@"
"""
SPACE_APP = """
import getpass, http.server, pathlib
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
        self.wfile.write(f"{getpass.getuser()} in {pathlib.Path.cwd()}".encode())
http.server.ThreadingHTTPServer(("0.0.0.0", 7860), Page).serve_forever()
"""
FASTAPI_APP = (
    "from fastapi import FastAPI\napp = FastAPI()\n@app.get('/')\ndef root(): return {'hello': 1}"
)
FLASK_APP = (
    "from flask import Flask\napp = Flask('x')\n@app.route('/')\ndef hello(): return 'Hello!'"
)

SERVERS: dict[str, tuple[str, int, dict[str, str], str]] = {
    "fastapi": (
        *(FASTAPI, 80),
        {"requirements_dot_txt": "fastapi\nuvicorn\n", "app__main_dot_py": FASTAPI_APP},
        '{"hello":1}',
    ),
    "flask": (
        *(FLASK, 5000),
        {"requirements_dot_txt": "Flask\n", "app_dot_py": FLASK_APP},
        "Hello!",
    ),
    "space": (SPACE, 7860, {"app_dot_py": SPACE_APP}, "user in /home/user/app"),
    "nginx": (
        *(NGINX, 8080),
        {"nginx_dot_conf": NGINX_CONF, "html__index_dot_html": "<h1>it works</h1>"},
        "<h1>it works</h1>",
    ),
    "entrypoint": (
        *(ENTRYPOINT, 8000),
        {"docker-entrypoint_dot_sh": SCRIPT},
        "prepared by /usr/local/bin/docker-entrypoint.sh\n",
    ),
}


@pytest.mark.parametrize("kind", SERVERS)
def test_a_published_server_builds_and_answers(containers: Path, tmp_path: Path, kind: str) -> None:
    text, port, files, answer = SERVERS[kind]
    with server(text, folder(tmp_path, **files), port) as handle:
        assert handle.request("GET", "/").text == answer


WHEELS = """
FROM BASE AS builder
COPY pkg /pkg
RUN pip wheel --no-deps -w /wheels /pkg

FROM BASE AS runtime
COPY --from=builder /wheels /wheels
RUN pip install --no-index --find-links=/wheels mine
"""
SETUP = "from setuptools import setup\nsetup(name='mine', version='1.5', py_modules=['mine'])\n"
MOUNTS = """
FROM BASE
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=bind,source=list.txt,target=/list.txt \\
    pip install -r /list.txt
COPY <<'EOF' /etc/greeting
hello $USER
EOF
RUN --mount=type=secret,id=TOKEN <<EOF
set -e
wc -c < /run/secrets/TOKEN > /etc/length
stat -c %a /etc/greeting > /etc/greeting-mode
EOF
"""
ARGUMENTS = """
ARG TAG=none
FROM python:${TAG}
ARG WHO=nobody
ENV WHO=$WHO GREETING="hello ${WHO}"
RUN echo "$GREETING" > /greeting
ADD data.tar /unpacked/
WORKDIR /somewhere/else
USER 1234:1234
"""


def test_a_function_runs_in_what_several_stages_built(containers: Path, tmp_path: Path) -> None:
    files = {"pkg__setup_dot_py": SETUP, "pkg__mine_dot_py": "WHOSE = 'mine'"}
    source = "def staged(x: int):\n    import mine; return mine.WHOSE"
    with deployed(source, image=image(WHEELS, folder(tmp_path, **files))) as handle:
        assert handle(1) == "mine"


def test_mounts_heredocs_and_secrets_work_and_leave_no_secret(
    containers: Path, tmp_path: Path, engine: docker.APIClient
) -> None:
    root = folder(tmp_path, list_dot_txt="cowsay==6.1\n")
    own = image(MOUNTS, root, secrets={"TOKEN": "swordfish-7-42"})
    with deployed(READING, image=own) as handle:
        assert handle("/etc/greeting") == "hello $USER\n"
        assert handle("/etc/length") == "14\n"
        assert handle("/etc/greeting-mode") == "644\n"
        (container,) = containers_of(engine, "read")
        assert "swordfish" not in str(engine.history(container["Image"]))
        assert "swordfish" not in str(container)
    assert "swordfish" not in steps(containers, "read")
    for file in containers.rglob("*"):
        assert not file.is_file() or b"swordfish" not in file.read_bytes(), file


def test_a_heredoc_with_variables_of_the_builder_is_refused_with_what_to_do(
    containers: Path,
) -> None:
    own = image("FROM BASE\nCOPY <<EOF /home-of\n$HOME\nEOF\n")
    with (
        pytest.raises(DeployError, match=r"the text of the COPY of line 2 has variables .* by ENV"),
        deployed("def never(x: int): return x", image=own),
    ):
        pass


def test_arguments_users_and_folders_are_those_of_the_dockerfile(
    containers: Path, tmp_path: Path
) -> None:
    folder(tmp_path, inner="packed")
    with tarfile.open(tmp_path / "data.tar", "w") as archive:
        archive.add(tmp_path / "inner", "inner")
    own = image(ARGUMENTS, tmp_path, build_args={"TAG": BASE.partition(":")[2], "WHO": "you"})
    source = (
        "def told(x: int):\n    import os\n"
        "    texts = [open(p).read() for p in ('/greeting', '/unpacked/inner')]\n"
        "    return [*texts, os.getcwd(), os.getuid(), os.environ['WHO']]\n"
    )
    with deployed(source, image=own) as handle:
        assert handle(1) == ["hello you\n", "packed", "/somewhere/else", 1234, "you"]


def test_what_an_image_brings_wins_over_what_the_runner_needs(containers: Path) -> None:
    own = image("FROM BASE\nRUN pip install cloudpickle==3.0.0 cowsay\n")
    source = (
        "def versions(x: int):\n    import cloudpickle, cowsay, pydantic\n"
        "    return [cloudpickle.__version__, pydantic.__file__]\n"
    )
    with deployed(source, image=own) as handle:
        version, file = handle(1)
        assert version == "3.0.0"
        assert file.startswith("/opt/fal/libraries")


def test_an_app_class_has_an_image_with_its_files(
    containers: Path, shell: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JPY_SESSION_NAME", str(tmp_path / "a.ipynb"))
    folder(tmp_path, weights_dot_txt="41", Dockerfile=f"FROM {BASE}\nCOPY weights.txt /w/\n")
    shell.run(
        "%%fal_app wait=true\nimport fal_notebook as fal\nclass Model(fal.App):\n"
        f"    image = fal.ContainerImage.from_dockerfile({str(tmp_path / 'Dockerfile')!r})\n"
        "    def setup(self):\n        self.weight = int(open('/w/weights.txt').read())\n"
        "    @fal.endpoint('/')\n    def predict(self, x: int) -> int:\n"
        "        return self.weight + x\n"
    )
    assert shell["Model"].predict(x=1) == 42


def test_the_entry_point_of_an_image_prepares_its_functions(containers: Path) -> None:
    text = (
        "FROM BASE\nENTRYPOINT ['ignored']\n"
        "RUN printf '#!/bin/sh\\nexport PREPARED=yes\\nexec \"$@\"\\n' > /begin\n"
        "RUN chmod +x /begin\n"
    )
    source = "def prepared(x: int):\n    import os; return os.environ.get('PREPARED')\n"
    with deployed(source, image=image(text)) as handle:
        assert handle(1) is None
        with deployed(source, image=image(text, entrypoint=["/begin"])) as begun:
            assert begun(1) == "yes"


# --- from the cell -------------------------------------------------------------------------------
def test_a_cell_with_an_image_is_a_container_without_saying_so(
    containers: Path, shell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAL_NOTEBOOK_TARGET", "local")
    shell.run(
        f"%%fal_function image={BASE} wait=true\ndef where(x: int):\n"
        "    import os; return os.path.exists('/.dockerenv')\n"
    )
    assert shell["where"](1) is True
    shell.run(f"from fal_notebook import ContainerImage\nown = ContainerImage('FROM {BASE}')")
    shell.run(
        "%%fal_function image=own wait=true\ndef where(x: int):\n"
        "    import os; return os.path.exists('/.dockerenv'), x\n"
    )
    assert shell["where"](1) == (True, 1)
    with pytest.raises(OptionError, match="image and target=local exclude each other"):
        deploying.deploy(shell["where"].original, image=BASE, target="local")


def test_a_changed_file_is_a_new_revision_and_an_unchanged_one_is_none(
    containers: Path, tmp_path: Path
) -> None:
    own = image("FROM BASE\nCOPY text /text\n", folder(tmp_path, text="one", other="x"))
    before = set((containers / "blobs").glob("*"))
    with deployed(READING, image=own) as handle:
        assert handle("/text") == "one"
        folder(tmp_path, other="y")
        again = deploying.deploy(handle.original, image=own, wait=True)
        assert again.status()["number"] == 1
        folder(tmp_path, text="two")
        changed = deploying.deploy(handle.original, image=own, wait=True)
        assert changed.status()["number"] == 2
        assert changed("/text") == "two"
    assert set((containers / "blobs").glob("*")) == before


def test_what_is_ignored_is_not_copied(containers: Path, tmp_path: Path) -> None:
    files = {"a_dot_txt": "a", "b_dot_log": "b", "deep__c_dot_log": "c", "deep__keep_dot_log": "k"}
    own = image("FROM BASE\nCOPY . /all\n", folder(tmp_path, **files))
    own.add_dockerignore(patterns=["**/*.log", "!deep/keep.log"])
    source = (
        "def listed(x: int):\n    import pathlib\n"
        "    return sorted(str(p) for p in pathlib.Path('/all').rglob('*') if p.is_file())\n"
    )
    with deployed(source, image=own) as handle:
        assert handle(1) == ["/all/a.txt", "/all/deep/keep.log"]


# --- what goes wrong -----------------------------------------------------------------------------
FAILURES = {
    "syntax": ("FROM BASE\nFROB x\n", r"(?i)unknown instruction: frob"),
    "syntax for BuildKit": (
        "FROM BASE\nRUN --mount=type=cache,target=/x true\nFROB x\n",
        r"image could not be built: dockerfile parse error line 3: unknown instruction: FROB",
    ),
    "step": (
        "FROM BASE\nRUN echo the reason; exit 7\n",
        r"Step 2/3 : RUN echo the reason; exit 7 failed: exit status 7(.|\n)*the reason",
    ),
    "step by BuildKit": (
        "FROM BASE\nRUN --mount=type=cache,target=/x echo the reason; exit 7\n",
        r"Step 2/2 : RUN .* failed: exit status 7(.|\n)*the reason",
    ),
    "base": ("FROM localhost:1/none:1\n", r"localhost:1/none:1 cannot be pulled"),
    "copied from": ("FROM BASE\nCOPY --from=localhost:1/x:1 /a /b", "localhost:1/x:1 cannot be"),
    "machine": (
        'FROM BASE\nRUN printf "\\177ELF" > /other && chmod +x /other\nRUN ["/other"]\n',
        "Step 3/4 .* failed: its programs are for another machine than this one",
    ),
    "machine of Python": (
        "FROM BASE\nRUN p=$(which python3) && rm $p && printf '\\177ELF' > $p && chmod +x $p\n",
        "its program is for another one",
    ),
    "no Python": ("FROM scratch\nCOPY file /file\n", "the image has no python3, .* FROM python:"),
    "other minor": (
        "FROM BASE\nRUN p=$(which python3) && rm $p && chmod +x $p.sh 2>/dev/null; "
        """printf '#!/bin/sh\\necho {\\\\"python\\\\": \\\\"3.99\\\\"}' > $p && chmod +x $p\n""",
        "the image has Python 3.99 and this kernel .* write FROM python:",
    ),
    "full disk": (
        "FROM BASE\nRUN dd if=/dev/zero of=/dev/shm/x bs=1M count=200\n",
        "Step 2/3 .* failed: the disk of the Docker engine is full",
    ),
    "file": ("FROM BASE\nCOPY gone /x\n", r"COPY gone \(line 2 of the Dockerfile\) takes gone"),
    "pydantic": (
        "FROM BASE\nRUN pip install 'pydantic<2'\n",
        "brings .*pydantic 1.* needs .*pydantic>=",
    ),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_what_goes_wrong_is_named_and_the_old_revision_serves(
    old: Handle, engine: docker.APIClient, tmp_path: Path, kind: str
) -> None:
    text, said = FAILURES[kind]
    own = image(text, folder(tmp_path, file="x"))
    with pytest.raises((DeployError, OptionError), match=said):
        deploying.deploy(old.original, name="old", image=own, wait=True)
    assert old(1) == 2
    (container,) = containers_of(engine, "old")
    ours = f"{STATE}={container['Config']['Labels'][STATE]}"
    left = engine.containers(all=True, filters={"label": ours})
    assert [found["Labels"]["fal-notebook.app"] for found in left] == ["old"]


def test_a_secret_that_a_failing_step_prints_is_not_shown(old: Handle) -> None:
    text = "FROM BASE\nRUN --mount=type=secret,id=K cat /run/secrets/K; exit 1\n"
    own = image(text, secrets={"K": "swordfish-99"})
    with pytest.raises(DeployError) as caught:
        deploying.deploy(old.original, name="old", image=own, wait=True)
    assert "swordfish" not in str(caught.value)
    assert "[secret K]" in str(caught.value)


def test_a_secret_is_one_of_the_environment_or_a_stored_one(
    containers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HERE", "of the environment")
    text = (
        "FROM BASE\nRUN --mount=type=secret,id=A --mount=type=secret,id=B cat /run/secrets/* > /x"
    )
    own = image(text, secrets={"A": "$HERE", "B": "$STORED"})
    with pytest.raises(NotFoundError, match="no secret STORED"):
        deploying.deploy(lambda x: x, name="read", image=own, wait=True)
    sync.wait(shared_client().set_secret("STORED", ", stored"))
    with deployed(READING, image=own) as handle:
        assert handle("/x") == "of the environment, stored"


def test_a_stored_secret_does_not_go_into_an_image_with_a_file(
    containers: Path, tmp_path: Path
) -> None:
    sync.wait(shared_client().set_secret("IN_FILE", "correct-horse-battery"))
    root = folder(tmp_path, a="nothing", deep__settings_dot_ini="key = correct-horse-battery")
    with pytest.raises(OptionError, match=r"deep/settings.ini of the build context .* IN_FILE"):
        deploying.deploy(
            lambda x: x, name="read", image=image("FROM BASE\nCOPY . .", root), wait=True
        )
    held = [file for file in (containers / "blobs").glob("*") if b"-horse-" in file.read_bytes()]
    assert not held


def test_secrets_of_a_build_stay_out_of_logs_after_a_restart_and_of_what_a_killed_one_left(
    containers: Path, eventually: Eventually
) -> None:
    text = "FROM BASE\nRUN --mount=type=secret,id=K cp /run/secrets/K /k && chmod 644 /k\n"
    source = "def told(x: int):\n    print('it is', open('/k').read()); return x"
    with deployed(source, image=image(text, secrets={"K": "tuna-salad-99"})) as handle:
        left = containers / "builds" / "tmp1" / "secret-0"
        left.parent.mkdir(parents=True)
        left.write_text("tuna-salad-99")
        start_gateway_again(containers, eventually)
        assert handle(1) == 1
        assert eventually(lambda: [x for x in handle.logs() if "it is" in x["message"]])
        lines = " ".join(line["message"] for line in handle.logs())
        assert "it is [secret K]" in lines
        assert not left.exists()


def test_a_command_for_servers_is_noted_where_a_function_runs(containers: Path) -> None:
    with (
        pytest.warns(UserWarning, match="cmd is what an image runs as a server"),
        deployed(SOURCE, image=image("FROM BASE", cmd="python3 x.py")) as handle,
    ):
        assert handle(1) == 2


@pytest.mark.parametrize("flag", ["", "--mount=type=cache,target=/x "])
def test_a_cancelled_build_ends_at_once(
    containers: Path, eventually: Eventually, flag: str
) -> None:
    number = 41_000 + len(flag)
    own = image(f"FROM BASE\nRUN {flag}echo started; sleep {number}\n")
    handle = deploying.deploy(lambda x: x, name="cancelled", image=own)

    def sleeping() -> bool:
        commands = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
        return any(command == ["sleep", str(number)] for command in commands)

    eventually(sleeping)
    sync.wait(shared_client().cancel_deploy("tester", "cancelled"))
    with pytest.raises(DeployError, match="cancelled"):
        handle.wait()
    eventually(lambda: not sleeping())
    assert not any(
        "docker" in " ".join(p.cmdline())
        for p in psutil.Process().children(True)
        if p.name() == "docker"
    )


# --- decisions without an engine -----------------------------------------------------------------
def read_log(*lines: str) -> tuple[list[str], BuildError]:
    told = list[str]()
    steps = Steps(told.append)
    for line in lines:
        steps.take(line)
    return told, steps.error()


def test_the_log_of_newer_builders_is_read_too() -> None:
    told, error = read_log(
        "#1 [internal] load build definition from Dockerfile",
        "#5 [build 1/2] FROM docker.io/library/python:3.11",
        "#6 [build 2/2] RUN false",
        "#6 0.211 out",
        "#6 0.211 two",
        '#6 ERROR: process "/bin/sh -c false" did not complete successfully: exit code: 1',
        "------",
        " > [build 2/2] RUN false:",
        "ERROR: failed to solve: process ...",
    )
    assert told == [
        "Step 1/2 : FROM docker.io/library/python:3.11",
        "Step 2/2 : RUN false",
        "out",
        "two",
    ]
    assert str(error) == "the image could not be built, Step 2/2 : RUN false failed: exit status 1"
    assert error.log == ["out", "two"]


@pytest.mark.parametrize(
    ("status", "printed", "said"),
    [
        (127, 'exec: "python3": executable file not found in $PATH', "no python3"),
        (1, "Traceback: something", "does not run, it ended with exit status 1"),
        (0, '{"python": "3.10"}', "has Python 3.10 and this kernel 3.11"),
        (0, '{"python": "3.11", "implementation": "pypy"}', "has pypy"),
        (
            0,
            '{"python": "3.11", "implementation": "cpython", "musl": true}',
            "Alpine's C library",
        ),
        (
            1,
            "standard_init_linux.go:228: exec user process caused: exec format error",
            "its program is for another one",
        ),
        (127, "exec /usr/bin/python3: no such file or directory", "python3 .* does not run"),
    ],
)
def test_images_that_cannot_run_a_runner_are_refused(status: int, printed: str, said: str) -> None:
    with pytest.raises(BuildError, match=said):
        image_python.versions(status, printed, "3.11", "amd64", "amd64")


def test_what_does_not_run_and_is_made_for_another_machine_is_told_so() -> None:
    said = "image is made for arm64 and the Docker engine's machine is amd64"
    for printed in ("", 'exec: "python3": executable file not found in $PATH', "exec format error"):
        with pytest.raises(BuildError, match=said):
            image_python.versions(127, printed, "3.11", "arm64", "amd64")
    with pytest.raises(BuildError, match=r"has Python 3\.10"):  # it runs all the same
        image_python.versions(0, '{"python": "3.10"}', "3.11", "arm64", "amd64")


def test_without_buildkit_it_is_said_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match=r"needs BuildKit .* install Docker's buildx plugin"):
        sync.wait(buildkit._command())
