"""Prometheus metrics under fal's names."""

from __future__ import annotations

import httpx
from prometheus_client.parser import text_string_to_metric_families
from serving import control, deployed, run_url, with_key

from fal_notebook.discovery import GatewayInfo


def test_metrics_have_fals_names_and_tell_what_happened(gateway: GatewayInfo) -> None:
    source = "def measured(x: int) -> int:\n    return x\n"
    with (
        control(gateway) as client,
        deployed(source, serve=True, auth="public", min_concurrency=1) as handle,
    ):
        for body in ({"x": 1}, {"x": 2}, {}):
            httpx.post(run_url(gateway, handle), json=body)
        key = client.post("/api/keys").json()
        answer = httpx.get(f"{gateway.url}/metrics", headers=with_key(key["key"]))
        client.delete(f"/api/keys/{key['id']}")
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        app = "tester/measured"
        values = {
            (line.split("{")[0], line.split("{")[1].split("} ")[0]): float(line.split("} ")[1])
            for line in answer.text.splitlines()
            if f'app="{app}"' in line
        }
        assert values["fal_app_requests_received", f'app="{app}"'] == 3
        assert values["fal_app_requests_completed", f'app="{app}",status="200"'] == 2
        assert values["fal_app_requests_completed", f'app="{app}",status="422"'] == 1
        assert values["fal_app_request_latency_count", f'app="{app}"'] == 3
        assert values["fal_app_queue_size", f'app="{app}"'] == 0
        assert values["fal_app_concurrent_requests", f'app="{app}"'] == 0
        families = {family.name: family for family in text_string_to_metric_families(answer.text)}
        assert families["fal_app_requests_received"].type == "counter"
        assert families["fal_app_request_latency"].type == "histogram"
        runners = [s for s in families["fal_app_runners"].samples if s.labels["app"] == app]
        assert [(s.value, s.labels["state"]) for s in runners] == [(1, "IDLE")]
        memory = families["fal_app_runner_memory_usage_bytes"].samples
        assert any(s.value > 10_000_000 for s in memory if s.labels["app"] == app)
        assert "fal_app_runner_cpu_usage_percent" in families
