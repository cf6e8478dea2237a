"""A broker is killed, or frozen: 503 in time, nothing more, and everything by itself when it is back."""

import asyncio
import contextlib
import signal
import time
from collections import Counter
from collections.abc import Callable

import pytest
from tests.adversity.parts import KEY, Parts
from tests.adversity.posting import posting, slowest_s, statuses
from tests.conftest import make_settings
from tests.integration.brokers import strike
from tests.integration.edge import Wire, an_event, request

from drm_ingest.settings import Settings
from drm_ingest.up.kafka import Kafka

RECOVERY_S = 10.0
MEMORY_MB = 64.0
ALLOCATOR_MB = 16.0

Seen = Callable[[str], None]

pytestmark = pytest.mark.timeout(600)  # brokers take long to start on a busy machine


def quick(settings: Settings) -> Settings:
    """A deadline that passes within the shorter outages."""
    return settings.model_copy(update={"produce_deadline_s": 2, "produce_request_timeout_s": 1})


async def end_of(kafka: Kafka, what: signal.Signals, gone_s: float, parts: Parts) -> tuple[float, float, float]:
    """Let the broker be gone for that long; return since when, until when, and what memory the edge took meanwhile."""
    before = most = parts.memory_mb("edge")
    await strike(kafka, what)
    gone_at = time.monotonic()
    while time.monotonic() < gone_at + gone_s:
        await asyncio.sleep(0.2)
        most = max(most, parts.memory_mb("edge"))
    if what is signal.SIGKILL:
        await asyncio.to_thread(kafka.start)
    else:
        kafka.signal(signal.SIGCONT)
    return gone_at, time.monotonic(), most - before


@pytest.mark.row("broker-killed")
@pytest.mark.parametrize(
    "blows",
    [
        [(signal.SIGKILL, 5)],
        pytest.param([(signal.SIGKILL, 60), (signal.SIGSTOP, 30)], marks=pytest.mark.slow),
    ],
    ids=["quick", "full"],
)
async def test_all_is_answered_503_in_time_while_the_broker_is_gone_and_goes_on_by_itself_when_it_is_back(
    spare_kafka: Callable[[], Kafka],
    database: str,
    start_parts: Callable[[Settings], Parts],
    seed: int,
    seen: Seen,
    blows: list[tuple[signal.Signals, float]],
) -> None:
    kafka = await asyncio.to_thread(spare_kafka)
    settings = make_settings(kafka, database)
    settings = quick(settings) if max(gone_s for _, gone_s in blows) < 10 else settings
    parts = await asyncio.to_thread(start_parts, settings)
    for what, gone_s in blows:
        async with parts.ledger(events=6000, seed=seed, rate=2000) as ledger, posting(parts) as posts:
            await posts.acknowledged(time.monotonic(), 10)
            await asyncio.sleep(1)
            gone_at, back_at, grown_mb = await end_of(kafka, what, gone_s, parts)
            gone = posts.answered(gone_at + 1, gone_at + gone_s)  # an answer of the broker's may be on its way before
            recovered_s = (await posts.acknowledged(back_at, 60)).answered_at - back_at
            workers_s = [await parts.ready(worker) + recovered_s for worker in ("enrich", "attach")]
        await posts.check_stored()

        seen(
            f"{what.name} {gone_s} s: {len(gone)} posts answered {dict(statuses(gone))}, "
            f"the slowest after {slowest_s(posts.all):.1f} s; back after the broker: edge {recovered_s:.1f} s, "
            f"workers {max(workers_s):.1f} s; +{grown_mb:.0f} MB"
        )
        assert set(statuses(gone)) == {503}
        posts.check_in_time(settings.produce_deadline_s)
        assert recovered_s < RECOVERY_S
        assert grown_mb < MEMORY_MB
        assert ledger.resent


@pytest.mark.row("broker-killed")
@pytest.mark.slow
async def test_a_flood_while_the_broker_is_mute_takes_no_more_memory_than_the_limits_of_bodies_and_of_the_writer(
    private_kafka: Callable[[], Kafka], database: str, start_parts: Callable[..., Parts], seen: Seen
) -> None:
    kafka = await asyncio.to_thread(private_kafka)
    settings = quick(make_settings(kafka, database)).model_copy(update={"request_in_flight_bytes_max": 32 << 20})
    room_mb = (settings.writer_buffered_bytes_max + settings.request_in_flight_bytes_max) / 1e6
    parts = await asyncio.to_thread(start_parts, settings, ["edge"])
    events = [an_event(type="unknown.to.us", data={"text": "x" * 10_000}) for _ in range(100)]
    megabyte = request(events, key=KEY)
    answers: Counter[int] = Counter()

    async def flood(until: float) -> None:
        while time.monotonic() < until:
            reader, writer = await asyncio.open_connection("127.0.0.1", settings.edge_port)
            wire = Wire(reader, writer)
            with contextlib.suppress(ConnectionError):  # refused before the body was read whole
                await wire.send(megabyte)
            answers[(await wire.reply()).status] += 1
            writer.close()

    await asyncio.gather(*(flood(time.monotonic() + 4) for _ in range(100)))  # what such a load takes on a good day
    assert answers[200]
    answers.clear()
    flooding = asyncio.gather(*(flood(time.monotonic() + 6) for _ in range(100)))
    _, _, grown_mb = await end_of(kafka, signal.SIGSTOP, 6, parts)
    await flooding
    await parts.ready("edge", RECOVERY_S)

    seen(f"100 MB at a time while the broker is mute: {answers[503]} times 503, +{grown_mb:.0f} MB of {room_mb:.0f}")
    assert answers[503] > 50
    assert grown_mb < room_mb + ALLOCATOR_MB
