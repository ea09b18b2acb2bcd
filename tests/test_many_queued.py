"""Ten thousand requests in the queue of a real gateway, which is killed before half are done."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
from pathlib import Path
from urllib.parse import urlsplit

import psutil
from gateway_processes import deploy, stop
from serving import eventually

from fal_notebook import discovery
from fal_notebook.discovery import GatewayInfo

REQUESTS, CALLERS = 10_000, 40
WORK = """
import asyncio, os
async def who(n: int, gate: str) -> int:
    while not os.path.exists(gate):
        await asyncio.sleep(0.05)
    return n
"""
MIB = 1024 * 1024


async def submit_all(gateway: GatewayInfo, gate: Path) -> None:
    """Submit over as many connections as there are callers, each one request after the other."""
    address, numbers = urlsplit(gateway.url), iter(range(REQUESTS))

    async def caller() -> None:
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        for number in numbers:
            body = json.dumps({"n": number, "gate": str(gate)})
            writer.write(
                f"POST /queue/tester/who HTTP/1.1\r\nHost: {address.netloc}\r\n"
                f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
            )
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            assert head.startswith(b"http/1.1 200 "), head
            length = int(head.partition(b"content-length: ")[2].split(b"\r\n")[0])
            await reader.readexactly(length)
        writer.close()

    await asyncio.gather(*(caller() for _ in range(CALLERS)))


def count(state: Path, what: str) -> int:
    with contextlib.closing(sqlite3.connect(state / "queue.db")) as database:
        return int(database.execute(f"SELECT count(*) FROM {what}").fetchone()[0])


def test_ten_thousand_requests_are_accepted_and_done_over_a_kill(
    state: Path, tmp_path: Path
) -> None:
    gateway, gate = discovery.ensure(state), tmp_path / "gate"
    deploy(gateway, WORK, max_concurrency=1, max_multiplexing=64)
    process = psutil.Process(gateway.pid)
    before = process.memory_info().rss
    asyncio.run(submit_all(gateway, gate))
    assert count(state, "requests") == REQUESTS
    assert process.memory_info().rss - before < 64 * MIB
    gate.touch()
    eventually(lambda: count(state, "answers") > REQUESTS / 10, timeout=60)
    os.kill(gateway.pid, signal.SIGKILL)
    discovery.wait_until_gone(state)
    assert count(state, "answers") < REQUESTS
    again = discovery.ensure(state)
    eventually(lambda: count(state, "answers") == REQUESTS, timeout=90)
    assert psutil.Process(again.pid).memory_info().rss - before < 64 * MIB
    with contextlib.closing(sqlite3.connect(state / "queue.db")) as database:
        answers = database.execute("SELECT status, content FROM answers").fetchall()
    assert {status for status, _ in answers} == {200}
    assert sorted(int(content) for _, content in answers) == list(range(REQUESTS))
    stop(again, state)
