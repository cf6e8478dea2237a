"""More than Kafka takes: the edge says so, in time, holds no more than its limits, and recovers by itself."""

import asyncio
import contextlib
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from tests.integration.edge import Edge, an_event, request

from drm_ingest.settings import KiB, MiB, Settings
from drm_ingest.up.kafka import Kafka

SMALL = {
    "writer_buffered_bytes_max": 4 * MiB,
    "request_in_flight_bytes_max": 8 * MiB,
    "produce_deadline_s": 3,
    "produce_request_timeout_s": 2,
}
MARGIN_BYTES = 24 * MiB  # what taking one body apart costs, and what the allocator keeps of it
CONNECTIONS = 200
BODY_BYTES = 500 * KiB  # all of them together are eight times the limits


@pytest.mark.parametrize("events", [1, 2000], ids=["large events", "large batches"])
async def test_while_kafka_hangs_the_edge_answers_503_in_time_within_its_memory_and_goes_on_when_kafka_does(
    settings: Settings, spare_kafka: Callable[[], Kafka], tmp_path: Path, events: int
) -> None:
    kafka = spare_kafka()
    settings = settings.model_copy(update=SMALL | {"kafka_bootstrap": kafka.bootstrap})
    edge = Edge.start(settings, tmp_path / "edge.log")
    text = "x" * (BODY_BYTES // events - 150 if events > 1 else settings.event_bytes_max - 500)
    body = request([an_event(type="acme.over", data=text) for _ in range(events)])
    answers: Counter[tuple[int, str]] = Counter()
    try:
        process = psutil.Process(edge.process.pid)
        before = peak = process.memory_info().rss
        kafka.signal(signal.SIGSTOP)
        overload = asyncio.gather(*(insist(edge, body, answers) for _ in range(CONNECTIONS)))
        while not overload.done():
            peak = max(peak, process.memory_info().rss)
            await asyncio.sleep(0.05)
        await overload
        assert set(answers) == {(503, "overloaded"), (503, "not_acknowledged")}
        samples = await edge.metrics()
        assert (
            samples['drm_ack_seconds_bucket{le="5.0"}'] == samples["drm_ack_seconds_count"] > 0
        )  # the deadline, and a second, and one for a busy machine
        received, accounted = await edge.ledger()
        assert received == accounted
        allowed = settings.writer_buffered_bytes_max + settings.request_in_flight_bytes_max + MARGIN_BYTES
        assert peak - before < allowed
        kafka.signal(signal.SIGCONT)
        sentinel = an_event()
        async with asyncio.timeout(30):
            while (await edge.post(sentinel)).status_code != 200:  # noqa: ASYNC110 - it is another process
                await asyncio.sleep(0.1)
        assert sentinel["subject"] in await edge.stored(sentinel["subject"])
    finally:
        edge.process.kill()
        edge.process.wait()
    print(f"rose by {(peak - before) / MiB:.0f} MiB, {dict(answers)}")


async def insist(edge: Edge, body: bytes, answers: Counter[tuple[int, str]]) -> None:
    """Send it again and again for about two deadlines, without the pause that was asked for."""
    until = asyncio.get_running_loop().time() + 2 * edge.settings.produce_deadline_s
    while asyncio.get_running_loop().time() < until:
        async with edge.connect() as wire:
            while asyncio.get_running_loop().time() < until:
                sending = asyncio.create_task(wire.send(body))
                reply = await wire.reply()
                with contextlib.suppress(ConnectionError):
                    await sending
                answers[reply.status, reply.code] += 1
                assert int(reply.headers["retry-after"]) >= 1
                if reply.headers.get("connection") == "close":
                    break
