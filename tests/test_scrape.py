"""Metrics of runners as text: read, labelled, merged; what is none is left out."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fal_notebook.backends.base import Started
from fal_notebook.gateway import launch, metrics_ports, scrape
from fal_notebook.gateway.metrics_ports import MetricsPorts
from fal_notebook.gateway.scrape import LONGEST_LINE, UP, Page, render

HISTOGRAM = """# HELP took Seconds.
# TYPE took histogram
took_bucket{le="1.0"} 2
took_bucket{le="+Inf"} 3
took_count 3
took_sum 4.5
"""
GAUGE = "# TYPE took gauge\ntook 1\n"


def lines(*texts: str) -> list[str]:
    pages = [Page("o/a", f"r{number}", text) for number, text in enumerate(texts)]
    return render(pages).decode().splitlines()


def test_a_family_of_several_runners_is_told_once() -> None:
    told = lines(HISTOGRAM, HISTOGRAM)
    assert told.count("# TYPE took histogram") == 1
    assert told.count("# HELP took Seconds.") == 1
    assert 'took_bucket{app="o/a",le="1.0",runner="r0"} 2.0' in told
    assert 'took_sum{app="o/a",runner="r1"} 4.5' in told
    families = {f.name: f for f in text_string_to_metric_families("\n".join(told) + "\n")}
    assert (families["took"].type, len(families["took"].samples)) == ("histogram", 8)


def test_of_two_kinds_under_one_name_the_first_is_told() -> None:
    told = lines(HISTOGRAM, GAUGE)
    assert told.count("# TYPE took histogram") == 1
    assert not any(line.startswith("took{") for line in told)


@pytest.mark.parametrize(
    "text",
    ["", "no metrics", "<html>nothing here</html>", 'x{a="1} 2', "x " + "9" * LONGEST_LINE, "\0"],
)
def test_a_page_that_is_none_says_that_its_runner_is_not_up(text: str) -> None:
    told = lines(text, GAUGE)
    assert f'{UP}{{app="o/a",runner="r0"}} 0.0' in told
    assert f'{UP}{{app="o/a",runner="r1"}} 1.0' in told
    assert 'took{app="o/a",runner="r1"} 1.0' in told
    assert not any('runner="r0"' in line for line in told if not line.startswith(UP))


def test_the_gateways_own_names_are_its_own() -> None:
    assert not any("fal_app_runners" in line for line in lines("fal_app_runners 5\nother 1\n"))


def test_labels_of_the_same_names_are_kept_beside() -> None:
    (told,) = [line for line in lines('x{app="mine",b="1"} 1\n') if line.startswith("x{")]
    assert told == 'x{app="o/a",b="1",exported_app="mine",runner="r0"} 1.0'


def test_no_two_runners_have_one_port(monkeypatch: pytest.MonkeyPatch) -> None:
    free = iter([9001, 9001, 9002])
    monkeypatch.setattr(metrics_ports, "_bound", lambda port: port or next(free))
    ports = MetricsPorts()
    assert [ports.take(runner, 9000) for runner in "abc"] == [9000, 9001, 9002]
    ports.give_back("a")
    ports.hold("d", 9002)
    assert ports.take("e", 9000) == 9000


def test_a_port_that_cannot_be_had_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_ports, "_bound", lambda port: 0 if port == 80 else port or 9001)
    assert MetricsPorts().take("a", 80) == 9001


@contextlib.asynccontextmanager
async def saying(head: bytes, piece: bytes, pieces: int, pause: float) -> AsyncIterator[str]:
    """Serve an answer in pieces to everybody; gives the address."""

    answered = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head + b"\r\n\r\n")
        with contextlib.suppress(OSError):  # nobody reads more
            for _ in range(pieces):
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(pause)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        answered.set()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    yield f"tcp:127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()
    if head:
        await answered.wait()


OK = b"HTTP/1.1 200 OK"


@pytest.mark.parametrize(
    ("head", "piece", "pieces", "pause", "text"),
    [
        (OK, b"x 1\n", 2, 0, "x 1\nx 1\n"),
        (OK, b"x 1\n", 10_000, 0.05, ""),  # it never ends
        (OK, b"x" * 100_000, 20, 0, ""),
        (b"HTTP/1.1 404 Not Found", b"x 1\n", 1, 0, ""),
        (b"no HTTP", b"", 0, 0, ""),
    ],
    ids=["whole", "endless", "too large", "not there", "no HTTP"],
)
async def test_a_page_is_read_within_bounds(
    monkeypatch: pytest.MonkeyPatch, head: bytes, piece: bytes, pieces: int, pause: float, text: str
) -> None:
    monkeypatch.setattr(scrape, "TIMEOUT", 0.5)
    async with saying(head, piece, pieces, pause) as address:
        assert await scrape._text(address) == text


async def test_a_port_on_which_nobody_listens_says_nothing() -> None:
    async with saying(b"", b"", 0, 0) as address:
        pass
    assert await scrape._text(address) == ""


def test_metrics_are_asked_for_where_the_runner_is() -> None:
    assert launch._host(Started("unix:/tmp/r.sock", {})) == "127.0.0.1"
    assert launch._host(Started("tcp:172.17.0.2:8080", {})) == "172.17.0.2"
    assert launch._host(Started("", {"host": "172.17.0.3"})) == "172.17.0.3"
