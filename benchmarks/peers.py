"""The peers as processes: bare FastAPI on uvicorn, and nginx in front of one of our runners."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
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
        config.write_text(text)
        # A worker that root starts would otherwise drop to a user who may not open the socket.
        if psutil.Process().uids().real == 0:
            config.write_text("user root;\n" + text)
        with _process(["nginx", "-p", folder, "-c", str(config)]):
            target = Target(("127.0.0.1", port), runner.path, runner.body)
            first_200(target)
            yield target


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
