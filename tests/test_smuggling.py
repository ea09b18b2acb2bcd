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
    "a length in quotes": f'{START}Content-Length: "2"\n\n{{}}{HIDDEN}',
    "a length with a point": f"{START}Content-Length: 2.0\n\n{{}}{HIDDEN}",
    "a length of two words": f"{START}Content-Length: 2 0\n\n{{}}{HIDDEN}",
    "a list of the same length": f"{START}Content-Length: 2, 2\n\n{{}}{HIDDEN}",
    "lengths of other digits": f"{START}Content-Length: \u0662\n\n{{}}{HIDDEN}",
    "a length behind a vertical tab": f"{START}Content-Length:\x0b2\n\n{{}}{HIDDEN}",
    "chunked in quotes": f'{START}Transfer-Encoding: "chunked"\n\n0\n\n{HIDDEN}',
    "chunked with a parameter": f"{START}Transfer-Encoding: chunked;x=1\n\n0\n\n{HIDDEN}",
    "chunked behind a comma": f"{START}Transfer-Encoding: ,chunked\n\n0\n\n{HIDDEN}",
    "chunked before a comma": f"{START}Transfer-Encoding: chunked,\n\n0\n\n{HIDDEN}",
    "chunked behind another coding": f"{START}Transfer-Encoding: gzip, chunked\n\n0\n\n{HIDDEN}",
    "chunked with NUL": f"{START}Transfer-Encoding: chun\0ked\n\n0\n\n{HIDDEN}",
    "chunked with a form feed": f"{START}Transfer-Encoding: chunked\x0c\n\n0\n\n{HIDDEN}",
    "identity": f"{START}Transfer-Encoding: identity\nContent-Length: 2\n\n{{}}{HIDDEN}",
    "no coding in it": f"{START}Transfer-Encoding:\nContent-Length: 2\n\n{{}}{HIDDEN}",
    "chunked in HTTP/1.0": f"{START.replace('1.1', '1.0')}Transfer-Encoding: chunked\n"
    f"Content-Length: 2\n\n0\n\n{HIDDEN}",
    "a coding with an underscore beside": f"{START}Transfer_Encoding: chunked\n"
    f"Content-Length: 2\nContent-Length: 3\n\n{{}}",
    "a chunk size with a sign": f"{START}Transfer-Encoding: chunked\n\n+2\n{{}}\n0\n\n",
    "a chunk size behind a space": f"{START}Transfer-Encoding: chunked\n\n 2\n{{}}\n0\n\n",
    "a chunk size before a space": f"{START}Transfer-Encoding: chunked\n\n2 \n{{}}\n0\n\n",
    "a chunk size with an underscore": f"{START}Transfer-Encoding: chunked\n\n0_2\n{{}}\n0\n\n",
    "no chunk size": f"{START}Transfer-Encoding: chunked\n\n\n{{}}\n0\n\n",
    "a chunk shorter than it says": f"{START}Transfer-Encoding: chunked\n\n4\n{{}}\n0\n\n{HIDDEN}",
    "NUL in a chunk extension": f"{START}Transfer-Encoding: chunked\n\n2;\0\n{{}}\n0\n\n",
    "a trailer that is none": f"{START}Transfer-Encoding: chunked\n\n2\n{{}}\n0\nX Y\n\n{HIDDEN}",
    "a host with a path": "POST /run/tester/seen HTTP/1.1\nHost: GATEWAY/x\nConnection: close\n\n",
    "a host with a user": "POST /run/tester/seen HTTP/1.1\nHost: a@GATEWAY\nConnection: close\n\n",
    "a host with a space": "POST /run/tester/seen HTTP/1.1\nHost: GATEWAY x\nConnection: close\n\n",
    "an empty host": "POST /run/tester/seen HTTP/1.1\nHost:\nConnection: close\n\n",
    "another host in absolute form": "POST http://elsewhere/run/tester/seen HTTP/1.1\n"
    "Host: GATEWAY\nContent-Length: 2\n\n{}",
    "a tunnel": "CONNECT GATEWAY HTTP/1.1\nHost: GATEWAY\n\n",
    "HTTP/0.9": "GET /run/tester/seen\n\n",
    "HTTP/1.10": "POST /run/tester/seen HTTP/1.10\nHost: GATEWAY\n\n",
    "HTTP/2": "PRI * HTTP/2.0\n\nSM\n\n",
    "a lower-case version": "POST /run/tester/seen http/1.1\nHost: GATEWAY\n\n",
    "a header before the first line": "X: a\nPOST /run/tester/seen HTTP/1.1\nHost: GATEWAY\n\n",
    "a space before the first header": "POST /run/tester/seen HTTP/1.1\n X: a\nHost: GATEWAY\n\n",
    "a control character in a name": f"{START}X\x01: a\nContent-Length: 2\n\n{{}}",
    "a control character in a value": f"{START}X: a\x01b\nContent-Length: 2\n\n{{}}",
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
CHUNKED = FIRST + b"Transfer-Encoding: chunked\r\n\r\n"
BARE = {
    "LF at every line": FIRST.replace(b"\r", b"") + b"Content-Length: 2\n\n{}",
    "LF in a value": FIRST + b"X: a\nContent-Length: 2\r\n\r\n{}",
    "CR in a value": FIRST + b"X: a\rContent-Length: 2\r\n\r\n{}",
    "CR at every line": FIRST.replace(b"\n", b"") + b"Content-Length: 2\r\r{}",
    "CR behind the size of a chunk": CHUNKED + b"2\r{}\r\n0\r\n\r\n",
    "LF behind the size of a chunk": CHUNKED + b"2\n{}\r\n0\r\n\r\n",
    "LF in a chunk extension": CHUNKED + b"2;x\n{}\r\n0\r\n\r\n",
    "LF behind the last chunk": CHUNKED + b"2\r\n{}\r\n0\n\r\n",
    "LF behind a trailer": CHUNKED + b"2\r\n{}\r\n0\r\nX: a\n\r\n",
    "LF behind the first line": FIRST.replace(b"1.1\r", b"1.1") + b"Content-Length: 2\r\n\r\n{}",
    "LF behind the head": FIRST + b"Content-Length: 2\r\n\n{}",
    "LF before the first line": b"\n" + FIRST + b"Content-Length: 2\r\n\r\n{}",
    "LF behind a line before it": b"\r\n\n" + FIRST + b"Content-Length: 2\r\n\r\n{}",
    "LF behind a chunk": CHUNKED + b"2\n{}\n0\n\n",
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


def test_a_line_before_the_first_is_overlooked_also_between_requests(
    gateway: GatewayInfo, seen: str
) -> None:
    request = b"\r\n" + FIRST + b"Content-Length: 2\r\n\r\n{}"
    with Wire(gateway) as wire:
        request = request.replace(b"HOST", wire.host.encode())
        assert wire.send(request).response()[0] == 200
        assert wire.send(request).response()[0] == 200
        assert answered(wire.send(b"\n" + request)) == [400]


@pytest.mark.parametrize("case", TOO_LONG)
def test_a_head_that_is_too_long_is_refused(gateway: GatewayInfo, seen: str, case: str) -> None:
    before = asked(gateway)
    with Wire(gateway) as wire, contextlib.suppress(ConnectionError):
        status = 414 if case == "a path" else 431
        assert answered(wire.send(TOO_LONG[case])) in ([], [status])  # it may be reset unread
    assert asked(gateway) == before + 1
