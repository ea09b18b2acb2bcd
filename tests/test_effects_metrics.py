"""What metrics_port does: the gateway says, as its own, what its runners say of themselves."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from effects import effect_of, given
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from serving import control, deployed, eventually, start_gateway_again

from fal_notebook import discovery
from fal_notebook.discovery import GatewayInfo

SOURCE = """
import http.server, os, threading

def start() -> None:
    class Own(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/metrics" else 404)
            self.end_headers()
            self.wfile.write(PAGE.encode())
    address = "127.0.0.1", int(os.environ["METRICS_PORT"])
    server = http.server.ThreadingHTTPServer(address, Own)
    threading.Thread(target=server.serve_forever, daemon=True).start()

PAGE = '''# HELP steps_total Steps done.
# TYPE steps_total counter
steps_total{app="own",kind="a"} 3
# TYPE fal_app_queue_size gauge
fal_app_queue_size{app="tester/meters"} 777
# TYPE fal_notebook_gpus_total gauge
fal_notebook_gpus_total 777
'''

def meters() -> int:
    return os.getpid()
"""


def metrics(gateway: GatewayInfo) -> dict[str, list[Sample]]:
    """Return what the gateway says, by name of the metric."""
    with control(gateway) as client:
        families = text_string_to_metric_families(client.get("/metrics").text)
        return {family.name: family.samples for family in families}


def of_meters(gateway: GatewayInfo, name: str) -> dict[str, Sample]:
    found = metrics(gateway).get(name, [])
    return {s.labels["runner"]: s for s in found if s.labels["app"] == "tester/meters"}


@pytest.fixture
def port() -> int:
    """A port that is free, as nobody else takes it."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def setup_of(source: str) -> Any:
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(source, space)
    return space["start"]


@effect_of("metrics_port")
def test_what_runners_say_is_told_with_whose_it_is(gateway: GatewayInfo, port: int) -> None:
    options = {**given(metrics_port=port), "min_concurrency": 2, "max_concurrency": 2}
    with deployed(SOURCE, setup_function=setup_of(SOURCE), **options) as meters:
        eventually(lambda: [r["state"] for r in meters.runners()] == ["IDLE"] * 2)
        ports = {r["id"]: r["metrics_port"] for r in meters.runners()}
        assert port in ports.values()
        assert len(set(ports.values())) == 2
        steps = of_meters(gateway, "steps")
        assert set(steps) == set(ports)
        for runner, sample in steps.items():
            told = {"exported_app": "own", "kind": "a", "app": "tester/meters", "runner": runner}
            assert (sample.labels, sample.value) == (told, 3)
        size = [s for s in metrics(gateway)["fal_app_queue_size"] if "runner" in s.labels]
        assert size == []  # nobody speaks for the gateway
        assert [s.labels for s in metrics(gateway)["fal_notebook_gpus_total"]] == [{}]
        up = of_meters(gateway, "fal_app_runner_metrics_up")
        assert {s.value for s in up.values()} == {1.0}


def test_a_runner_that_says_nothing_holds_nobody(gateway: GatewayInfo, port: int) -> None:
    options = {"metrics_port": port, "min_concurrency": 2, "max_concurrency": 2}
    with deployed(SOURCE, setup_function=setup_of(SOURCE), **options) as meters:
        eventually(lambda: [r["state"] for r in meters.runners()] == ["IDLE"] * 2)
        frozen = meters()
        os.kill(frozen, signal.SIGSTOP)
        up = of_meters(gateway, "fal_app_runner_metrics_up")
        assert sorted(s.value for s in up.values()) == [0.0, 1.0]
        assert len(of_meters(gateway, "steps")) == 1
        assert "fal_app_runners" in metrics(gateway)
        os.kill(frozen, signal.SIGCONT)


def test_a_runner_keeps_its_port_over_a_restart_of_the_gateway(
    own_gateway: Path, port: int
) -> None:
    options = {"metrics_port": port, "min_concurrency": 1, "max_concurrency": 2}
    with deployed(SOURCE, setup_function=setup_of(SOURCE), **options) as meters:
        start_gateway_again(own_gateway, eventually)
        (runner,) = eventually(lambda: [r for r in meters.runners() if r["state"] == "IDLE"])
        assert runner["metrics_port"] == port
        gateway = discovery.ensure(own_gateway)
        assert of_meters(gateway, "steps")[runner["id"]].value == 3
        meters.scale(min_concurrency=2)
        runners = eventually(lambda: len(found := meters.runners()) == 2 and found)
        assert len({r["metrics_port"] for r in runners}) == 2


def test_a_port_that_another_program_has_is_left_to_it(gateway: GatewayInfo) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as other:
        taken = other.getsockname()[1]
        with deployed(SOURCE, setup_function=setup_of(SOURCE), metrics_port=taken) as meters:
            (runner,) = meters.runners()
            assert runner["metrics_port"] != taken
            assert list(of_meters(gateway, "steps")) == [runner["id"]]


def test_a_server_of_ones_own_is_told_its_port_too(gateway: GatewayInfo, port: int) -> None:
    source = SOURCE.replace("def meters() -> int:\n    return os.getpid()\n", "")
    source += "def meters(port: int) -> None:\n    start()\n"
    source += "    http.server.HTTPServer(('127.0.0.1', port), "
    source += "http.server.SimpleHTTPRequestHandler).serve_forever()\n"
    with deployed(source, exposed_port=8123, metrics_port=port) as meters:
        (runner,) = meters.runners()
        assert list(of_meters(gateway, "steps")) == [runner["id"]]
