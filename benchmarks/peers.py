"""The peers as processes: bare FastAPI on uvicorn, and nginx in front of one of our runners."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
from loads import Target, first_200

BODY = b'{"text": "hello", "times": 2}'

_NGINX = """\
daemon off; master_process off; worker_processes 1; pid {folder}/pid; error_log stderr crit;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  upstream runner {{ server unix:{runner}; keepalive 64; }}
  server {{
    listen 127.0.0.1:{port};
    keepalive_requests 1000000;
    location / {{
      proxy_pass http://runner; proxy_http_version 1.1;
      proxy_set_header Connection ""; proxy_set_header x-fal-runner-secret {secret};
    }}
  }}
}}
"""


_NGINX_FILES = """\
daemon off; master_process off; worker_processes 1; pid {own}/pid; error_log stderr crit;
events {{ worker_connections 64; }}
http {{
  access_log off; client_body_temp_path {own}/body; proxy_temp_path {own}/proxy;
  fastcgi_temp_path {own}/f; uwsgi_temp_path {own}/u; scgi_temp_path {own}/s;
  server {{ listen 127.0.0.1:{port}; root {root}; }}
}}
"""
# A worker that root starts would otherwise drop to a user who may not read what it serves.
_AS_ROOT = "user root;\n"


def _is_root() -> bool:
    return bool(psutil.Process().uids().real == 0)


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def bare(count: int = 1) -> Iterator[tuple[Target, psutil.Process]]:
    """Start bare FastAPI on uvicorn, `count` processes at once; give the first of them.

    When this is entered each has answered 200 once.
    """
    program = str(Path(__file__).with_name("bare_app.py"))
    with ExitStack() as stack:
        ports = [free_port() for _ in range(count)]
        started = [stack.enter_context(_process([sys.executable, program, str(p)])) for p in ports]
        targets = [Target(("127.0.0.1", port), "/", BODY) for port in ports]
        for target in targets:
            first_200(target)
        yield targets[0], psutil.Process(started[0].pid)


@contextmanager
def nginx(runner: Target) -> Iterator[Target]:
    """Start nginx with one worker as a proxy in front of a runner's Unix socket."""
    port = free_port()
    secret = dict(runner.headers)["x-fal-runner-secret"]
    with tempfile.TemporaryDirectory(prefix="fal-bench-nginx-") as folder:
        config = Path(folder, "nginx.conf")
        text = _NGINX.format(folder=folder, runner=runner.address, port=port, secret=secret)
        config.write_text(_AS_ROOT * _is_root() + text)
        with _process(["nginx", "-p", folder, "-c", str(config)]):
            target = Target(("127.0.0.1", port), runner.path, runner.body)
            first_200(target)
            yield target


@contextmanager
def nginx_files(folder: Path) -> Iterator[str]:
    """Start nginx with one worker that serves the files of a folder; give its URL."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="fal-bench-nginx-") as own:
        config = Path(own, "nginx.conf")
        config.write_text(
            _AS_ROOT * _is_root() + _NGINX_FILES.format(own=own, port=port, root=folder)
        )
        with _process(["nginx", "-p", own, "-c", str(config)]):
            until_accepts(port)
            yield f"http://127.0.0.1:{port}"


def until_accepts(port: int, deadline_s: float = 10.0) -> None:
    """Wait until somebody listens on a port."""
    deadline = time.monotonic() + deadline_s
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.003)


@contextmanager
def _process(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    # In a session of its own: ^C in the terminal is for run.py, which ends what it started.
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
