"""Continuous load on an app from threads, direct and through the queue: what each was answered."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Any

import httpx
from serving import control, eventually

from fal_notebook.discovery import GatewayInfo
from fal_notebook.handle import Handle


class Load:
    """While its body runs, callers call one after the other without a pause.

    `answers` counts what came back: the status, of those that say more with their text.
    """

    def __init__(self, gateway: GatewayInfo, app: Handle, direct: int = 3, queued: int = 2) -> None:
        self._gateway = gateway
        self._run, self._queue = (f"/{kind}/{app.owner}/{app.name}" for kind in ("run", "queue"))
        self._stop = threading.Event()
        self.answers: Counter[Any] = Counter()
        calls = [self._direct] * direct + [self._queued] * queued
        self._threads = [threading.Thread(target=self._work, args=(call,)) for call in calls]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        self.go_on()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: TracebackType | Any) -> None:
        if kind is None:
            self.go_on()
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def go_on(self, calls: int = 20) -> None:
        """Wait until so many more have been answered."""
        before = self.answers.total()
        eventually(lambda: self.answers.total() >= before + calls, timeout=60)

    def _work(self, call: Callable[[httpx.Client], httpx.Response]) -> None:
        with control(self._gateway) as client:
            client.timeout = httpx.Timeout(60)
            while not self._stop.is_set():
                try:
                    answer = call(client)
                    told: Any = answer.status_code if answer.is_success else answer.text
                except httpx.HTTPError as error:
                    told = repr(error)
                self.answers[told] += 1

    def _direct(self, client: httpx.Client) -> httpx.Response:
        return client.post(self._run, json={"do": "sleep", "n": 0.02})

    def _queued(self, client: httpx.Client) -> httpx.Response:
        accepted = client.post(self._queue, json={"do": "sleep", "n": 0.02})
        if accepted.is_error:
            return accepted
        path = f"{self._queue}/requests/{accepted.json()['request_id']}"
        while client.get(f"{path}/status").json()["status"] != "COMPLETED":
            time.sleep(0.01)
        return client.get(path)
