"""Requests of which two servers could read different things are refused; nothing reaches an app."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from serving import Wire, defined, deployed, post

from fal_notebook.discovery import GatewayInfo

SEEN = """
def seen(count: object) -> int:
    return next(count)
"""
COUNTING = "def counting():\n    import itertools\n    return itertools.count(1)"
HIDDEN = "POST /run/tester/seen HTTP/1.1\nHost: GATEWAY\nContent-Length: 2\n\n{}"
START = "POST /run/tester/seen HTTP/1.1\nHost: GATEWAY\n"


@pytest.fixture(scope="module")
def seen(gateway: GatewayInfo) -> Iterator[str]:
    options = {"setup_function": defined(COUNTING), "max_concurrency": 1, "keep_alive": 300}
    with deployed(SEEN, serve=True, auth="public", **options) as handle:
        yield f"/run/tester/{handle.name}"


REFUSED = {
    "length and chunked": f"{START}Content-Length: 2\nTransfer-Encoding: chunked\n\n0\n\n{HIDDEN}",
    "chunked and length": f"{START}Transfer-Encoding: chunked\nContent-Length: 2\n\n0\n\n{HIDDEN}",
    "two lengths": f"{START}Content-Length: 2\nContent-Length: 9\n\n{{}}{HIDDEN}",
    "the same length twice": f"{START}Content-Length: 2\nContent-Length: 2\n\n{{}}{HIDDEN}",
    "a list of lengths": f"{START}Content-Length: 2, 9\n\n{{}}{HIDDEN}",
    "a signed length": f"{START}Content-Length: +2\n\n{{}}{HIDDEN}",
    "a negative length": f"{START}Content-Length: -2\n\n{{}}{HIDDEN}",
    "a length in hex": f"{START}Content-Length: 0x2\n\n{{}}{HIDDEN}",
    "a length with a letter": f"{START}Content-Length: 2a\n\n{{}}{HIDDEN}",
    "no length in it": f"{START}Content-Length:\n\n{HIDDEN}",
    "a huge length": f"{START}Content-Length: 99999999999999999999\n\n{{}}",
    "chunked twice": f"{START}Transfer-Encoding: chunked, chunked\n\n0\n\n{HIDDEN}",
    "chunked not last": f"{START}Transfer-Encoding: chunked, identity\n\n0\n\n{HIDDEN}",
    "another coding": f"{START}Transfer-Encoding: xchunked\n\n0\n\n{HIDDEN}",
    "coding behind a tab": f"{START}Transfer-Encoding:\x0bchunked\n\n0\n\n{HIDDEN}",
    "two codings": f"{START}Transfer-Encoding: chunked\nTransfer-Encoding: x\n\n0\n\n{HIDDEN}",
    "space before the colon": f"{START}Content-Length : 2\n\n{{}}{HIDDEN}",
    "coding, space before the colon": f"{START}Transfer-Encoding : chunked\n\n0\n\n{HIDDEN}",
    "a folded header": f"{START}X-A: 1\n Content-Length: 2\nContent-Length: 2\n\n{{}}",
    "a folded coding": f"{START}Transfer-Encoding:\n chunked\n\n0\n\n{HIDDEN}",
    "a folded first header": "POST /run/tester/seen HTTP/1.1\n Host: GATEWAY\n\n",
    "no host": "POST /run/tester/seen HTTP/1.1\nConnection: close\nContent-Length: 2\n\n{}",
    "two hosts": f"{START}Host: GATEWAY\nContent-Length: 2\n\n{{}}",
    "two different hosts": f"{START}Host: elsewhere\nContent-Length: 2\n\n{{}}",
    "NUL in a value": f"{START}X-A: a\0b\nContent-Length: 2\n\n{{}}",
    "NUL in a name": f"{START}X\0A: a\nContent-Length: 2\n\n{{}}",
    "no colon": f"{START}Content-Length 2\n\n{{}}",
    "no name": f"{START}: x\nContent-Length: 2\n\n{{}}",
    "a name of two words": f"{START}X A: x\nContent-Length: 2\n\n{{}}",
    "a chunk of a wrong size": f"{START}Transfer-Encoding: chunked\n\nzz\n{{}}\n0\n\n",
    "a chunk of a negative size": f"{START}Transfer-Encoding: chunked\n\n-2\n{{}}\n0\n\n",
    "a chunk of 0x size": f"{START}Transfer-Encoding: chunked\n\n0x2\n{{}}\n0\n\n",
    "a chunk longer than it says": f"{START}Transfer-Encoding: chunked\n\n1\n{{}}\n0\n\n",
    "a chunk size that overflows": f"{START}Transfer-Encoding: chunked\n\n{'f' * 17}\n{{}}\n0\n\n",
    "another version": "POST /run/tester/seen HTTP/3.7\nHost: GATEWAY\n\n",
    "a space in the path": "POST /run/tester/seen x HTTP/1.1\nHost: GATEWAY\n\n",
}
TOO_LONG = {
    "a header": f"{START}X-A: {'a' * 200_000}\n\n",
    "all headers": START + "".join(f"X-{n}: {'a' * 90}\n" for n in range(2000)) + "\n",
    "a path": f"POST /run/tester/seen?{'a' * 200_000} HTTP/1.1\nHost: GATEWAY\n\n",
}
# Written as they are: what `Wire` makes of a newline is what these have not.
FIRST = b"POST /run/tester/seen HTTP/1.1\r\nHost: HOST\r\n"
BARE = {
    "LF at every line": FIRST.replace(b"\r", b"") + b"Content-Length: 2\n\n{}",
    "LF in a value": FIRST + b"X: a\nContent-Length: 2\r\n\r\n{}",
    "CR in a value": FIRST + b"X: a\rContent-Length: 2\r\n\r\n{}",
    "CR at every line": FIRST.replace(b"\n", b"") + b"Content-Length: 2\r\r{}",
    "LF behind a chunk": FIRST + b"Transfer-Encoding: chunked\r\n\r\n2\n{}\n0\n\n",
}


def answered(wire: Wire) -> list[int]:
    """Return the status of each answer until the gateway closes."""
    wire.socket.settimeout(10)
    with contextlib.suppress(ConnectionError):
        rest = wire.rest()
        return [int(part[:3]) for part in rest.decode("latin-1").split("HTTP/1.1 ")[1:]]
    return []


def asked(gateway: GatewayInfo) -> int:
    """Return how often the app has been asked, this time included."""
    with Wire(gateway) as wire:
        status, _, body = wire.send(post("/run/tester/seen", {})).response()
        assert status == 200
        return int(body)


@pytest.mark.parametrize("case", REFUSED)
def test_what_two_servers_may_read_differently_is_refused_and_ends_the_connection(
    gateway: GatewayInfo, seen: str, case: str
) -> None:
    before = asked(gateway)
    with Wire(gateway) as wire:
        statuses = answered(wire.send(REFUSED[case]))
    assert len(statuses) == 1
    assert 400 <= statuses[0] < 506
    assert asked(gateway) == before + 1


@pytest.mark.parametrize("case", BARE)
def test_lines_that_do_not_end_as_they_should_hide_nothing(
    gateway: GatewayInfo, seen: str, case: str
) -> None:
    before = asked(gateway)
    with Wire(gateway) as wire:
        statuses = answered(wire.send(BARE[case].replace(b"HOST", wire.host.encode())))
    assert statuses in ([], [400])
    assert asked(gateway) == before + 1


@pytest.mark.parametrize("case", TOO_LONG)
def test_a_head_that_is_too_long_is_refused(gateway: GatewayInfo, seen: str, case: str) -> None:
    before = asked(gateway)
    with Wire(gateway) as wire, contextlib.suppress(ConnectionError):
        assert answered(wire.send(TOO_LONG[case])) in ([], [431])  # it may be reset unread
    assert asked(gateway) == before + 1
