"""Mixed load on several apps of a session, through the package's clients; every answer is checked.

The apps: a function, one that comes and goes with its requests, a class that streams, a server.
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httpx
from session import Session

APPS = 4
PIECES = 20
# What is said of wrong answers; all are counted.
TOLD = 5

_APPS = (
    "%%fal_function rare serve=true auth=public keep_alive=1 wait=true\n"
    "def rare(x: int) -> int:\n    return x + 1\n",
    "%%fal_app Streams auth=public max_multiplexing=16 min_concurrency=1 max_concurrency=1 "
    "wait=true\n"
    "import asyncio, collections\n"
    "import fal_notebook as fal\n"
    "class Streams(fal.App):\n"
    "    def setup(self):\n"
    "        self.ended = collections.defaultdict(asyncio.Event)\n"
    "    @fal.endpoint('/count')\n"
    "    async def count(self, n: int):\n"
    "        for number in range(n):\n"
    "            await asyncio.sleep(0.01)\n"
    "            yield number\n"
    "    @fal.endpoint('/nap')\n"
    "    async def nap(self, seconds: float) -> str:\n"
    "        request = self.current_request.request_id\n"
    "        try:\n"
    "            await asyncio.wait_for(self.ended[request].wait(), seconds)\n"
    "            return 'ended'\n"
    "        finally:\n"
    "            del self.ended[request]\n"
    "    @fal.endpoint('/nap/cancel')\n"
    "    async def end(self) -> None:\n"
    "        self.ended[self.current_request.request_id].set()\n",
    "%%fal_server files exposed_port=8000 min_concurrency=1 max_multiplexing=8 wait=true\n"
    f"echo hello > hello.txt; {sys.executable} -m http.server $PORT --bind 127.0.0.1\n",
)


class MixedLoad:
    """While its body runs, each kind of caller calls again and again.

    Attributes
    ----------
    done : Counter
        How often each kind was answered as it should be.
    wrong : list of str
        Every answer that was wrong.
    """

    def __init__(self, session: Session) -> None:
        self.done: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._session = session
        self._deploys = 0
        self._stop = threading.Event()
        for cell in _APPS:
            session.run(cell)
        self.deploy()
        self._double, self._rare = session["double"], session["rare"]
        self._streams, self._files = session["Streams"], session["files"]
        kinds: dict[str, tuple[Callable[[int], None], float]] = {
            "call": (self._call, 0.02),
            "HTTP": (self._http, 0.02),
            "queue": (self._queue, 0.05),
            "map": (self._map, 0.5),
            "cancel": (self._cancel, 0.3),
            "SSE": (self._sse, 0.05),
            "stream left": (self._leave, 0.2),
            "call left": (self._hang_up, 0.2),
            "from zero": (self._from_zero, 4.0),
            "server": (self._server, 0.1),
        }
        self._threads = [
            threading.Thread(target=self._work, args=(kind, *how), name=kind, daemon=True)
            for kind, how in kinds.items()
        ]

    def __enter__(self) -> MixedLoad:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
        self.wrong += [f"{t.name}: it does not end" for t in self._threads if t.is_alive()]

    def deploy(self) -> None:
        """Deploy the next revision of the function; it answers when this returns."""
        self._deploys += 1
        self._session.run(
            "%%fal_function double serve=true auth=public min_concurrency=1 max_concurrency=2 "
            "max_multiplexing=4 wait=true\n"
            f"def double(x: int) -> list[int]:\n    return [2 * x, {self._deploys}]\n"
        )
        if (answer := self._session["double"](4)) != [8, self._deploys]:
            self.wrong.append(f"deploy: {answer} of revision {self._deploys}")
        self.done["deploy"] += 1

    def delete_all(self) -> None:
        """Delete the apps."""
        for name in ("double", "rare", "Streams", "files"):
            self._session[name].delete()

    def told(self) -> str:
        """Return what was wrong, in a few lines; "" when nothing was."""
        more = len(self.wrong) - TOLD
        lines = self.wrong[:TOLD] + ([f"and {more} more"] if more > 0 else [])
        return "\n".join(lines)

    def _work(self, kind: str, call: Callable[[int], None], pause: float) -> None:
        number = 0
        while not self._stop.wait(pause):
            number += 1
            try:
                call(number)
            except Exception as error:
                self.wrong.append(f"{kind}: {error!r}"[:300])
            else:
                self.done[kind] += 1

    # --- the callers -------------------------------------------------------------------------
    def _call(self, x: int) -> None:
        _same(self._double(x)[0], 2 * x)

    def _http(self, x: int) -> None:
        with httpx.Client(trust_env=False, timeout=60) as client:
            _same(client.post(self._double.url, json={"x": x}).json()[0], 2 * x)

    def _queue(self, x: int) -> None:
        _same(self._double.submit(x).result(timeout=60)[0], 2 * x)

    def _map(self, x: int) -> None:
        numbers = range(x, x + 8)
        _same([two for two, _ in self._double.map(numbers)], [2 * n for n in numbers])

    def _cancel(self, x: int) -> None:
        from fal_notebook.exceptions import RequestCancelledError

        request = self._streams["/nap"].submit(seconds=600)
        if x % 2:
            while request.status().state == "IN_QUEUE":
                time.sleep(0.01)
        request.cancel()
        with contextlib.suppress(RequestCancelledError):
            _same(request.result(timeout=60), "ended")

    def _sse(self, x: int) -> None:
        _same(self._events(PIECES), list(range(PIECES)))

    def _leave(self, x: int) -> None:
        _same(self._events(100_000, leave_after=3), [0, 1, 2])

    def _events(self, n: int, leave_after: int = PIECES) -> list[int]:
        """Return the first values of a stream of `n`; more than that are not waited for."""
        url, found = f"{self._streams.url}/count", list[int]()
        with (
            httpx.Client(trust_env=False, timeout=60) as client,
            client.stream("POST", url, json={"n": n}) as answer,
        ):
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    found.append(json.loads(line[6:]))
                if n > PIECES and len(found) == leave_after:
                    break
        return found

    def _hang_up(self, x: int) -> None:
        url = urlsplit(self._streams.url)
        body = b'{"seconds": 600}'
        head = f"POST {url.path}/nap HTTP/1.1\r\nhost: {url.netloc}\r\ncontent-length: {len(body)}"
        with socket.create_connection((url.hostname, url.port), timeout=60) as caller:
            caller.sendall(head.encode() + b"\r\ncontent-type: application/json\r\n\r\n" + body)
            time.sleep(0.05 * (x % 3))

    def _from_zero(self, x: int) -> None:
        _same(self._rare(x), x + 1)

    def _server(self, x: int) -> None:
        _same(self._files.request("GET", "/hello.txt").text, "hello\n")


def _same(answer: Any, expected: Any) -> None:
    if answer != expected:
        raise AssertionError(f"{answer!r} and not {expected!r}")
