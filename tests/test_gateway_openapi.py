"""The control API is what its own OpenAPI says, whatever it is asked; nothing is harmed by it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from gateway_processes import WHO, deploy, stop
from hypothesis import HealthCheck, settings
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks
from serving import control

from fal_notebook import discovery
from fal_notebook.discovery import GatewayInfo

# Left out: what ends the gateway, and streams that never end.
LEFT_OUT = ("/api/gateway/stop", "/api/events")
# Most requests are for what there is.
EXISTING = {"owner": "tester", "name": "who"}
CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayInfo]:
    """A gateway with an app, which still serves after all of this."""
    state = tmp_path_factory.mktemp("fuzzed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAL_NOTEBOOK_STATE", str(state))
        gateway = discovery.ensure(state)
        deploy(gateway, WHO, min_concurrency=1)
        with control(gateway) as api:
            api.put("/api/secrets/KEPT", json={"value": "of the test"})
        yield gateway
        _is_unharmed(gateway, state)
        stop(gateway, state)


def _is_unharmed(gateway: GatewayInfo, state: Path) -> None:
    assert httpx.post(f"{gateway.url}/run/tester/who", json={}, timeout=20).is_success
    with control(gateway) as api:
        assert "who" in [app["name"] for app in api.get("/api/apps").json()]
        assert "KEPT" in [secret["name"] for secret in api.get("/api/secrets").json()]
    assert "Traceback" not in (state / "gateway.log").read_text()


@pytest.fixture(scope="module")
def document(fuzzed: GatewayInfo) -> Any:
    """The document, as the gateway gives it to its owner."""
    with control(fuzzed) as api:
        found = api.get("/openapi.json").json()
    paths = {path: methods for path, methods in found["paths"].items() if path not in LEFT_OUT}
    loaded = schemathesis.openapi.from_dict({**found, "paths": paths})
    loaded.config.update(base_url=fuzzed.url)
    return loaded


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/api/events?since=9223372036854775808", ""),
        ("GET", "/api/events?since=-1", ""),
        ("POST", "/api/apps/tester", '{"name": "\\ud800", "notebook": "\\udfff"}'),
        ("PATCH", "/api/apps/tester/who/scaling", '{"keep_alive": "\\ud800"}'),
        ("PATCH", "/api/apps/tester/who/scaling", '{"\\ud800": 1}'),
        ("PUT", "/api/secrets/KEPT", '{"value": "\\ud800\\ud800\\ud800\\ud800"}'),
        ("POST", "/api/apps/tester/who/promote", "[" * 100_000),
    ],
    ids=range(7),
)
def test_what_no_generator_thinks_of_is_refused(
    fuzzed: GatewayInfo, method: str, path: str, body: str
) -> None:
    with control(fuzzed) as api:
        headers = {"content-type": "application/json"}
        answer = api.request(method, path, content=body, headers=headers)
        assert answer.status_code in (400, 422), answer.text


def test_a_place_behind_all_events_is_one(fuzzed: GatewayInfo) -> None:
    with (
        control(fuzzed) as api,
        api.stream("GET", "/api/events", headers={"last-event-id": "9" * 19}) as events,
    ):
        assert events.status_code == 200
        api.put("/api/secrets/ANOTHER", json={"value": "of the test"})


schema = schemathesis.pytest.from_fixture("document")


@schema.parametrize()
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
def test_each_route_answers_as_its_document_says(case: Case, fuzzed: GatewayInfo) -> None:
    if case.query.get("follow"):
        case.query["follow"] = False
    if case.method != "DELETE" and random.Random(repr(case)).random() < 0.7:
        for name in case.path_parameters.keys() & EXISTING.keys():
            case.path_parameters[name] = EXISTING[name]
    headers = {"authorization": f"Bearer {fuzzed.token}"}
    case.call_and_validate(headers=headers, checks=CHECKS, timeout=20)
