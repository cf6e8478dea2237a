"""The health routes as a worker serves them: from its own event loop, on a real socket."""

import socket

import httpx
import pytest

from drm_ingest import health
from drm_ingest.metrics import Metrics


async def test_a_worker_answers_that_it_is_alive() -> None:
    async with health.serve("127.0.0.1", 0, Metrics("enrich"), lambda: None) as url, httpx.AsyncClient() as client:
        answer = await client.get(url + "/health/live")
    assert (answer.status_code, answer.json()) == (200, {"status": "live"})


async def test_ready_follows_the_process_and_names_its_reason() -> None:
    reason: str | None = "Kafka cannot be reached"
    async with (
        health.serve("127.0.0.1", 0, Metrics("enrich"), lambda: reason) as url,
        httpx.AsyncClient() as client,
    ):
        before = await client.get(url + "/health/ready")
        reason = None
        after = await client.get(url + "/health/ready")
    assert before.status_code == 503
    assert before.headers["content-type"] == "application/problem+json"
    assert (before.json()["code"], before.json()["detail"]) == ("not_ready", "Kafka cannot be reached")
    assert (after.status_code, after.json()) == (200, {"status": "ready"})


async def test_metrics_show_what_the_process_counted() -> None:
    metrics = Metrics("attach")
    metrics.received.inc(3)
    async with health.serve("127.0.0.1", 0, metrics, lambda: None) as url, httpx.AsyncClient() as client:
        text = (await client.get(url + "/metrics")).text
    assert "drm_events_received_total 3.0" in text
    assert 'drm_process_info{process="attach"} 1.0' in text


async def test_a_taken_port_is_an_ordinary_error_to_the_worker() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        async with health.serve("127.0.0.1", taken.getsockname()[1], Metrics("enrich"), lambda: None):
            pass


async def test_the_port_is_free_again_when_the_worker_stops() -> None:
    async with health.serve("127.0.0.1", 0, Metrics("enrich"), lambda: None) as url:
        port = int(url.rsplit(":", 1)[1])
    socket.create_server(("127.0.0.1", port)).close()
