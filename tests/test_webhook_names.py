"""Names of webhooks' hosts: those that hang hold up no other."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from fal_notebook.gateway.webhooks import names
from fal_notebook.gateway.webhooks.names import Names


class Resolver:
    """A resolver of the machine: names that begin with ``dead`` hang until `end` is set."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.end = threading.Event()

    def __call__(self, host: str, port: int, **_: Any) -> list[Any]:
        self.asked[host] += 1
        if host.startswith("dead"):
            self.end.wait(60)
            raise socket.gaierror("no answer")
        return [(0, 0, 0, "", (address, port)) for address in ("1.2.3.4", "1.2.3.4", "::2")]


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Resolver]:
    monkeypatch.setattr(names, "THREADS", 2)
    found = Resolver()
    yield found
    found.end.set()


async def test_names_that_hang_hold_no_name_that_was_found_before(resolver: Resolver) -> None:
    resolve = Names(resolver).resolve
    assert await resolve("good", 443) == ["1.2.3.4", "::2"]
    dead = [asyncio.ensure_future(resolve(f"dead-{number}", 443)) for number in range(20)]
    for _ in range(3):
        assert await asyncio.wait_for(resolve("good", 443), 5) == ["1.2.3.4", "::2"]
    new = asyncio.ensure_future(resolve("new", 443))
    await asyncio.wait((new,), timeout=0.05)
    assert not new.done()
    resolver.end.set()
    assert await new == ["1.2.3.4", "::2"]
    assert {type(error) for error in await asyncio.gather(*dead, return_exceptions=True)} == {
        socket.gaierror
    }


async def test_a_name_is_looked_up_once_for_all_who_ask_meanwhile(resolver: Resolver) -> None:
    resolve = Names(resolver).resolve
    asking = [asyncio.ensure_future(resolve("dead", 1)) for _ in range(9)]
    await asyncio.wait(asking, timeout=0.05)
    asking[0].cancel()  # as a submit does that has waited for long enough
    resolver.end.set()
    errors = await asyncio.gather(*asking, return_exceptions=True)
    assert [type(error) for error in errors[1:]] == [socket.gaierror] * 8
    assert resolver.asked == {"dead": 1}
    with pytest.raises(socket.gaierror):
        await resolve("dead", 1)
    assert resolver.asked == {"dead": 2}


async def test_a_name_that_hangs_now_is_no_found_one(
    resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "REMEMBERED", 2)
    found = Names(resolver)
    for host in ("a", "b", "c"):
        await found.resolve(host, 1)
    assert list(found._found) == ["b", "c"]
    monkeypatch.setattr(names, "AT_ONCE", 0.0)
    await found.resolve("b", 1)
    assert list(found._found) == ["c"]
