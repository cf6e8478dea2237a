"""The health routes as a worker serves them: from its own event loop, on a real socket."""

import asyncio
import contextlib
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from tests.conftest import make_environment

from drm_ingest import health
from drm_ingest.kafka.topics import create
from drm_ingest.metrics import Metrics
from drm_ingest.schema import Schemas
from drm_ingest.settings import Settings
from drm_ingest.up.ports import free_port


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


@pytest.mark.parametrize("process", ["edge", "serve"])
async def test_health_and_metrics_can_have_a_port_of_their_own(
    settings: Settings, process: str, tmp_path: Path
) -> None:
    port = free_port()
    settings = settings.model_copy(update={f"{process}_health_port": port})
    await create(settings, Schemas.load().families)
    with (tmp_path / "log").open("wb") as log:
        child = subprocess.Popen(  # noqa: ASYNC220 - the test has nothing else to do
            [sys.executable, "-m", "drm_ingest", process], env=make_environment(settings), stderr=log
        )
    try:
        async with httpx.AsyncClient(timeout=10) as client, asyncio.timeout(60):
            while True:
                assert child.poll() is None, (tmp_path / "log").read_text()
                with contextlib.suppress(httpx.TransportError):
                    if (await client.get(f"http://127.0.0.1:{port}/health/ready")).status_code == 200:
                        break
                await asyncio.sleep(0.1)
            assert "drm_ready 1.0" in (await client.get(f"http://127.0.0.1:{port}/metrics")).text
            assert (await client.get(f"http://127.0.0.1:{port}/v1/senders")).status_code == 404
            own = f"http://127.0.0.1:{settings.edge_port if process == 'edge' else settings.serve_port}"
            for path in ("/health/ready", "/health/live", "/metrics"):
                assert (await client.get(own + path)).status_code == 404
    finally:
        child.terminate()
        assert child.wait(30) == 0
