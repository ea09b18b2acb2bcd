"""Spans of real requests, as a collector receives them from a real gateway."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from otlp_receiver import Receiver, Span
from runner_bench import define, notebook
from serving import control, eventually
from test_trace_context import PARENT, SPAN, TRACE, TRACED, VALID

from fal_notebook import deploying, discovery, sync
from fal_notebook.discovery import GatewayInfo
from fal_notebook.handle import shared_client

SERVER, CLIENT = 2, 3

# FastAPI itself imports the API of OpenTelemetry, which records nothing.
LACKING = """
import sys

class Lacking:
    def find_spec(self, name, path=None, target=None):
        if name in ("opentelemetry.sdk", "opentelemetry.exporter"):
            raise ImportError(f"No module named {name!r}")

sys.meta_path.insert(0, Lacking())
"""


@pytest.fixture(scope="module")
def collector() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


@contextlib.contextmanager
def exporting(state: Path, patch: pytest.MonkeyPatch, **variables: str) -> Iterator[GatewayInfo]:
    """Start a gateway with these variables of OpenTelemetry's; stop it at the end."""
    state.mkdir(mode=0o700)
    sync.wait(shared_client().close())
    patch.setenv("FAL_NOTEBOOK_STATE", str(state))
    patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    patch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)  # another gateway's here
    for name, value in variables.items():
        patch.setenv(name, value)
    yield discovery.ensure(state)
    sync.wait(shared_client().stop_gateway())
    discovery.wait_until_gone(state)
    sync.wait(shared_client().close())


def deploy(**options: Any) -> Any:
    with notebook():
        return deploying.deploy(define(TRACED)["Traced"], wait=True, **options)


@pytest.fixture(scope="module")
def gateway(collector: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayInfo]:
    """A gateway that exports its spans; one app is deployed there."""
    state = tmp_path_factory.mktemp("traces") / "state"
    with (
        pytest.MonkeyPatch.context() as patch,
        exporting(state, patch, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url) as gateway,
    ):
        deploy(max_concurrency=1, max_multiplexing=1)
        yield gateway


def call(gateway: GatewayInfo, path: str = "", headers: Any = VALID, **body: Any) -> httpx.Response:
    with control(gateway) as client:
        return client.post(f"/run/tester/traced{path}", json=body, headers=headers)


def spans_of(collector: Receiver, request_id: str, number: int) -> list[Span]:
    """Return all spans of a request, once there are so many."""
    found: list[Span] = eventually(
        lambda: len(s := collector.of(fal__request_id=request_id)) >= number and s
    )
    assert len(found) == number, found
    return found


def one(spans: list[Span], name: str) -> Span:
    (found,) = (span for span in spans if span.name == name)
    return found


def test_a_request_and_its_attempt_are_children_of_the_callers_span(
    gateway: GatewayInfo, collector: Receiver
) -> None:
    answer = call(gateway, "?fal_key=hush")
    spans = spans_of(collector, answer.headers["x-fal-request-id"], 2)
    request, attempt = one(spans, "POST /run/tester/traced/"), one(spans, "attempt")
    assert (request.trace, request.parent, request.kind) == (TRACE, SPAN, SERVER)
    assert (attempt.trace, attempt.parent, attempt.kind) == (TRACE, request.id, CLIENT)
    assert answer.json()["traceparent"] == f"00-{TRACE}-{attempt.id}-01"
    assert answer.json()["tracestate"] == "a=1,b=2"
    assert request.trace_state == "a=1,b=2"
    assert request.begin <= attempt.begin <= attempt.end <= request.end
    assert not request.failed
    assert not attempt.failed
    with control(gateway) as client:
        (runner,) = client.get("/api/apps/tester/traced/runners").json()
    about = {
        "fal.app": "tester/traced",
        "fal.endpoint": "/",
        "fal.revision": 1,
        "fal.request_id": answer.headers["x-fal-request-id"],
        "http.request.method": "POST",
        "http.response.status_code": 200,
    }
    assert attempt.attributes == {
        **about,
        "fal.runner": runner["id"],
        "fal.machine_type": runner["machine_type"],
    }
    assert request.attributes == {
        **about,
        "http.route": "/run/tester/traced/",
        "url.path": "/run/tester/traced/",
        "url.scheme": "http",
        "network.protocol.version": "1.1",
    }
    assert request.resource["service.name"] == "fal-notebook"
    assert all(b"hush" not in body for body in collector.bodies)


def test_without_a_caller_of_its_own_a_trace_begins_here(
    gateway: GatewayInfo, collector: Receiver
) -> None:
    answer = call(gateway, headers={"traceparent": "nonsense"})
    spans = spans_of(collector, answer.headers["x-fal-request-id"], 2)
    request, attempt = one(spans, "POST /run/tester/traced/"), one(spans, "attempt")
    assert request.parent == ""
    assert answer.json()["traceparent"].startswith(f"00-{request.trace}-{attempt.id}-0")


def test_a_caller_that_records_nothing_has_nothing_recorded(
    gateway: GatewayInfo, collector: Receiver
) -> None:
    unsampled = {"traceparent": PARENT[:-1] + "0"}
    told = call(gateway, headers=unsampled)
    assert told.json()["traceparent"].startswith(f"00-{TRACE}-")
    assert told.json()["traceparent"].endswith("-00")
    spans_of(collector, call(gateway).headers["x-fal-request-id"], 2)
    assert collector.of(fal__request_id=told.headers["x-fal-request-id"]) == []


def test_failures_say_their_kind_and_nothing_that_may_be_secret(
    gateway: GatewayInfo, collector: Receiver
) -> None:
    answer = call(gateway, status=500)
    request, attempt = spans_of(collector, answer.headers["x-fal-request-id"], 2)
    assert request.failed
    assert attempt.failed
    assert request.attributes["http.response.status_code"] == 500
    assert request.attributes["error.type"] == attempt.attributes["error.type"] == "500"
    answer = call(gateway, status=404)
    request, attempt = spans_of(collector, answer.headers["x-fal-request-id"], 2)
    assert (request.failed, attempt.failed) == (False, True)  # the caller's own doing
    answer = call(gateway, "/" + "x" * 3000)
    assert answer.status_code == 404
    request, _ = spans_of(collector, answer.headers["x-fal-request-id"], 2)
    assert request.name == "POST /run/tester/traced"  # not one name for each path
    assert "fal.endpoint" not in request.attributes
    assert len(request.attributes["url.path"]) < 1000


def test_stored_secrets_are_taken_out_of_paths(gateway: GatewayInfo, collector: Receiver) -> None:
    with control(gateway) as client:
        client.put("/api/secrets/TRACE_KEY", json={"value": "s3cret-in-a-path"}).raise_for_status()
    answer = call(gateway, "/bot/s3cret-in-a-path/send")
    request, _ = spans_of(collector, answer.headers["x-fal-request-id"], 2)
    assert request.attributes["url.path"] == "/run/tester/traced/bot/[secret TRACE_KEY]/send"


def test_a_queued_request_waits_is_tried_and_is_tried_again(
    gateway: GatewayInfo, collector: Receiver, tmp_path: Path
) -> None:
    with control(gateway) as client:
        body = {"path": str(tmp_path / "seen")}
        told = client.post("/queue/tester/traced/once", json=body, headers=VALID).json()
        url = f"/queue/tester/traced/requests/{told['request_id']}"
        eventually(lambda: client.get(f"{url}/status").json()["status"] == "COMPLETED", 60)
        assert client.get(url).json()["tracestate"] == "a=1,b=2"
    spans = spans_of(collector, told["request_id"], 6)
    submit = one(spans, "POST /queue/tester/traced/once")
    assert (submit.trace, submit.parent, submit.kind) == (TRACE, SPAN, SERVER)
    waits = [span for span in spans if span.name == "queue wait"]
    lost, done = (span for span in spans if span.name == "attempt")
    cold = one(spans, "cold start")
    assert {span.parent for span in (*waits, lost, done)} == {submit.id}
    assert (lost.failed, lost.attributes["error.type"]) == (True, "runner_disconnected")
    assert "http.request.resend_count" not in lost.attributes
    assert (done.failed, done.attributes["http.request.resend_count"]) == (False, 1)
    assert lost.attributes["fal.runner"] != done.attributes["fal.runner"]
    assert cold.parent == waits[1].id  # its first runner was lost
    assert cold.attributes["fal.runner"] == done.attributes["fal.runner"]
    assert waits[1].begin <= cold.begin <= cold.end <= waits[1].end <= done.begin
    seen = (tmp_path / "seen").read_text().split()
    assert seen == [f"00-{TRACE}-{span.id}-01" for span in (lost, done)]


def test_who_waits_for_a_start_sees_the_wait_and_the_start(
    gateway: GatewayInfo, collector: Receiver
) -> None:
    scaling = "/api/apps/tester/traced/scaling"
    with control(gateway) as client:
        client.patch(scaling, json={"keep_alive": 0}).raise_for_status()
        runners = "/api/apps/tester/traced/runners"
        eventually(lambda: not client.get(runners).json())
        client.patch(scaling, json={"keep_alive": 60}).raise_for_status()
    answer = call(gateway, "/pieces")
    spans = spans_of(collector, answer.headers["x-fal-request-id"], 4)
    request, wait = one(spans, "POST /run/tester/traced/pieces"), one(spans, "queue wait")
    cold, attempt = one(spans, "cold start"), one(spans, "attempt")
    assert (wait.parent, cold.parent, attempt.parent) == (request.id, wait.id, request.id)
    assert request.begin <= wait.begin <= cold.begin <= cold.end <= wait.end <= attempt.begin
    pieces = [json.loads(x[6:]) for x in answer.text.splitlines() if x.startswith("data: ")]
    assert pieces[0]["traceparent"] == f"00-{TRACE}-{attempt.id}-01"


# --- what goes wrong -----------------------------------------------------------------------------
def test_a_collector_that_never_answers_holds_nobody_and_fills_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = Receiver()
    silent.open.clear()
    few = {"OTEL_BSP_MAX_QUEUE_SIZE": "64", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "16"}
    few["OTEL_EXPORTER_OTLP_TIMEOUT"] = "600"
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": silent.url, **few}
    with exporting(tmp_path / "state", monkeypatch, **variables) as gateway:
        deploy()
        call(gateway)
        assert silent.asked.wait(20)
        with control(gateway) as client:
            for _ in range(300):
                assert client.post("/run/tester/traced", json={}).status_code == 200
        silent.open.set()
        eventually(lambda: len(silent.spans) >= 64)
        latest = call(gateway).headers["x-fal-request-id"]
        eventually(lambda: silent.of(fal__request_id=latest))
        assert len(silent.spans) < 200, "600 spans were kept for a line of 64"
        silent.open.clear()  # and the gateway's end does not wait for it
        call(gateway)
    silent.close()


@pytest.mark.parametrize("name", ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TIMEOUT"])
def test_a_wrong_variable_or_a_dead_collector_keeps_no_app_from_working(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", name: "http://127.0.0.1:1"}
    with exporting(tmp_path / "state", monkeypatch, **variables) as gateway:
        deploy()
        assert {call(gateway).status_code for _ in range(50)} == {200}
        log = tmp_path / "state" / "gateway.log"
        eventually(log.read_text)
        assert len(log.read_text().splitlines()) <= 3


@pytest.fixture
def lacking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have gateways find no SDK of OpenTelemetry; return where a gateway's state is to lie."""
    folder = tmp_path / "lacking"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(LACKING)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return tmp_path / "state"


def test_without_the_extra_one_line_says_what_to_install(
    lacking: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
    with exporting(lacking, monkeypatch, **variables) as gateway:
        deploy()
        assert call(gateway).json() == VALID
        (line,) = (lacking / "gateway.log").read_text().splitlines()
        assert "pip install 'fal-notebook[otel]'" in line
        assert "OTEL_EXPORTER_OTLP_ENDPOINT is set" in line


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_TRACES_EXPORTER": "none"},
    ],
    ids=["no variable", "disabled", "no exporter"],
)
def test_who_asks_for_no_traces_has_nothing_imported(
    lacking: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    with exporting(lacking, monkeypatch, **variables) as gateway:
        deploy()
        assert call(gateway).json() == VALID
        assert (lacking / "gateway.log").read_text() == ""  # else: what to install
