"""Runners without a gateway: payloads from source text, a backend in a thread, a plain client."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import json
import os
import socket
import sys
import threading
import time
import types
import uuid
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import docker
import httpx

from fal_notebook import state_lock
from fal_notebook.backends.base import BuildOrder, Placement
from fal_notebook.backends.docker import DockerBackend
from fal_notebook.backends.local import LocalBackend
from fal_notebook.gateway.logs.lines import parse
from fal_notebook.machines import MachineType
from fal_notebook.payload import capture
from fal_notebook.runner import frames
from fal_notebook.runner.log_file import record_mark
from fal_notebook.runner.spec import RunnerSpec

T = TypeVar("T")
STATES = {"x-fal-link": "states"}
PLACEMENT = Placement("tester", "app", "revision", MachineType("S", 1024, 1))


def define(source: str) -> dict[str, Any]:
    """Run source text in the present ``__main__`` as a notebook would; return its names."""
    namespace = vars(sys.modules["__main__"])
    exec(compile(source, "<cell>", "exec", dont_inherit=True), namespace)
    return namespace


@contextlib.contextmanager
def notebook() -> Iterator[None]:
    """Have an empty ``__main__``, as a fresh kernel has."""
    before = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = before


def last_function(source: str) -> str:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node.name for node in ast.parse(source).body if isinstance(node, kinds)][-1]


def payload(source: str, entry: str = "") -> bytes:
    """Return the payload of the source's last function; one named ``setup`` is its setup."""
    with notebook():
        names = define(source)
        function = names[entry or last_function(source)]
        setup = None if isinstance(function, type) else names.get("setup")
        return capture(function, setup_function=setup).content


class Bench:
    """A backend with its event loop in a thread: a local one of a kind, or that of an engine."""

    def __init__(self, state: Path, sockets: Path, docker: bool = False, **kind: bool) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.state = state
        self._lock = state_lock.take(state)
        self.sockets = sockets
        self.docker = docker
        self.backend = DockerBackend(state) if docker else LocalBackend(state, sockets, **kind)
        self.environment = {"python": sys.executable, "libraries": ""}
        self.runners: list[LiveRunner] = []

    def environment_of(self, payload: Path, image: dict[str, Any] | None = None) -> dict[str, str]:
        """Return that of a payload, or of an image that is a server itself."""
        if not self.docker:
            return self.environment
        manifest = {"python": "{}.{}".format(*sys.version_info), "interpreter": sys.executable}
        kind = {"kind": "image"} if image is not None else {}
        order = BuildOrder({**manifest, **kind}, {"image": image}, payload)
        return self.run(self.backend.build(order, lambda line: None))

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)

    def start(self, source: str, entry: str = "", ready: bool = True, **spec: Any) -> LiveRunner:
        runner = LiveRunner(self, payload(source, entry), spec)
        self.runners.append(runner)
        if ready:
            runner.wait_for("IDLE")
        return runner

    @contextlib.contextmanager
    def without_gateway(self) -> Iterator[None]:
        """Let nobody hold the state folder."""
        assert self._lock is not None
        os.close(self._lock)
        yield
        self._lock = state_lock.take(self.state)

    def end_runners(self) -> None:
        while self.runners:
            self.runners.pop().kill()

    def close(self) -> None:
        self.end_runners()
        assert self._lock is not None
        os.close(self._lock)
        self.run(self.backend.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class LiveRunner:
    """One runner, spoken to over its socket with its secret."""

    def __init__(
        self,
        bench: Bench,
        content: bytes,
        spec: dict[str, Any],
        image: dict[str, Any] | None = None,
    ) -> None:
        identity = uuid.uuid4().hex[:12]
        self.folder = bench.state / "runners" / identity
        self.folder.mkdir(parents=True)
        file = bench.state / f"{identity}.payload"
        file.write_bytes(content)
        environment = {
            **bench.backend.inherited({"python": sys.executable}),
            "FAL_RUNNER_ID": identity,
        }
        environment["FAL_DATA_DIR"] = str(self.folder)
        self.spec = RunnerSpec(
            runner_id=identity,
            secret="s3cret",
            address=f"unix:{bench.sockets / identity}.sock",
            state=str(bench.state),
            payload=str(file),
            log=str(bench.state / f"{identity}.log"),
            folder=str(self.folder),
            environment={**environment, **spec.pop("environment", {})},
            **spec,
        )
        self._bench = bench
        start = bench.backend.start(self.spec, bench.environment_of(file, image), PLACEMENT)
        self.started = bench.run(start)
        self.process = self.started.process

    @property
    def pid(self) -> int:
        return int(self.process["pid"])

    @property
    def socket(self) -> str:
        return self.spec.address.removeprefix("unix:")

    def client(self, secret: str = "s3cret") -> httpx.Client:
        headers = {"x-fal-runner-secret": secret, "x-fal-request-id": "r1"}
        url, path = "http://r", None
        if self.started.address.startswith("tcp:"):
            url = f"http://{self.started.address.removeprefix('tcp:')}"
        else:
            path = self.socket
        transport = httpx.HTTPTransport(uds=path, retries=0)
        return httpx.Client(transport=transport, base_url=url, headers=headers, timeout=30)

    def post(self, body: Any = None, **request: Any) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        with self.client() as client:
            return client.post("/", content=b"" if body is None else content, **request)

    def value(self, **body: Any) -> Any:
        """Return the JSON result of a call that has to succeed."""
        reply = self.post(body)
        assert reply.status_code == 200, (reply.text, self.log())
        return reply.json()

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Call as a handle does; return the frames' contents."""
        content = frames.dump_call(args, kwargs)
        reply = self.post(content, headers={"content-type": frames.CONTENT_TYPE})

        async def chunks() -> Any:
            yield reply.content

        async def collect() -> list[Any]:
            return [frame async for frame in frames.read(chunks())]

        return asyncio.run(collect())

    def openapi(self) -> dict[str, Any]:
        with self.client() as client:
            return client.get("/openapi.json").json()

    def states(self) -> Iterator[dict[str, Any]]:
        """Yield the states of the link, once it can be reached, until it closes."""
        deadline = time.monotonic() + 20
        while not self._listens() and self.alive():
            assert time.monotonic() < deadline
            time.sleep(0.005)
        cut = contextlib.suppress(httpx.TransportError)  # it ended without a farewell
        with cut, self.client() as client, client.stream("GET", "/", headers=STATES) as reply:
            for line in reply.iter_lines():
                yield json.loads(line)

    def told(self) -> Iterator[dict[str, Any]]:
        """Yield the states that its backend tells, for it has no link."""
        states = self._bench.backend.states(self.process, self.spec.runner_id)
        assert states is not None
        while True:
            try:
                yield self._bench.run(anext(states))
            except StopAsyncIteration:
                return

    def signal(self, number: str) -> None:
        """Send a signal to its container from outside."""
        with contextlib.closing(docker.APIClient(os.environ["DOCKER_HOST"])) as engine:
            engine.kill(self.process["container"], number)

    def _listens(self) -> bool:
        if not self.started.address.startswith("tcp:"):
            return Path(self.socket).exists()
        host, _, port = self.started.address.removeprefix("tcp:").rpartition(":")
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1):
            return True
        return False

    def wait_for(self, state: str) -> dict[str, Any]:
        for line in self.states():
            if line["state"] == state:
                return line
            assert line["state"] != "FAILED", (line["error"], self.log())
        raise AssertionError(f"it never became {state}: {self.log()}")

    def alive(self) -> bool:
        return self._bench.backend.alive(self.process)

    def stop(self) -> None:
        self._bench.run(self._bench.backend.stop(self.process, self.spec.runner_id))

    def kill(self) -> str:
        return self._bench.run(self._bench.backend.kill(self.process, self.spec.runner_id))

    def lines(self) -> list[dict[str, Any]]:
        text = Path(self.spec.log).read_text(errors="replace")
        mark = record_mark(self.spec.secret)
        return [parse(line.encode(), mark) for line in text.rstrip("\n").split("\n") if line]

    def log(self) -> list[str]:
        return [line["message"] for line in self.lines()]
