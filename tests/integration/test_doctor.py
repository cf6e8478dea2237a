"""`drm-ingest doctor` finds what is wrong, says what to do, and its exit code tells programs."""

import asyncio
import sys
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from drm_ingest.event import HEADER_RECEIPT, Receipt
from drm_ingest.kafka.reader import Reader
from drm_ingest.kafka.topics import Topics, create
from drm_ingest.kafka.writer import Outgoing, Writer
from drm_ingest.metrics import Metrics
from drm_ingest.schema import Schemas
from drm_ingest.settings import Settings
from drm_ingest.up.ports import free_port
from drm_ingest.up.postgres import Postgres


async def doctor(environment: Mapping[str, str], **changed: str) -> tuple[int, str]:
    """Return the exit code and what was said, on one line."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "drm_ingest", "doctor",
        env={**environment, "COLUMNS": "1000", **changed}, stdout=PIPE, stderr=STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    assert process.returncode is not None
    assert b"Traceback" not in output
    return process.returncode, " ".join(output.decode().split())


@pytest.fixture
async def topics(settings: Settings) -> Topics:
    await create(settings, Schemas.load().families)
    return Topics.of(settings)


async def write(settings: Settings, topics: Topics, received_at: datetime) -> None:
    receipt = msgspec.json.encode(Receipt(received_at, request_id="r", sender="s"))
    writer = Writer(settings, Metrics("edge"))
    await writer.start()
    try:
        await writer.write([Outgoing(topics.ingress, 1, b"meter-7", b"{}", [(HEADER_RECEIPT, receipt)])] * 3)
    finally:
        await writer.stop(5)


async def test_it_finds_nothing_wrong_where_all_is_well(
    settings: Settings, topics: Topics, environment: dict[str, str]
) -> None:
    await write(settings, topics, datetime.now(UTC))
    async with Reader(settings, Metrics("enrich"), "enrich", [topics.ingress]) as reader:
        batch = await anext(reader.batches(10))
        await reader.commit({partition: records[0].offset + 1 for partition, records in batch.items()})
        code, said = await doctor(environment)
    assert "✓ enrich 1 worker, 2 events behind" in said
    assert "! attach nobody reads, never read yet → start `drm-ingest attach`" in said
    assert "✓ clocks Kafka's fits the newest event" in said
    assert "✓ migrations all applied" in said
    assert "✗" not in said
    assert code == 0


async def test_missing_topics_and_tables_are_found_with_what_to_do(
    settings: Settings, environment: dict[str, str], postgres: Postgres
) -> None:
    code, said = await doctor(environment, DRM_POSTGRES_DSN=postgres.dsn)
    assert code == 1
    assert "✗ topics all: does not exist → run `drm-ingest topics`" in said
    assert "✗ migrations 0001_" in said
    assert "→ run `drm-ingest migrate`" in said


async def test_one_that_is_away_does_not_hide_the_other(
    settings: Settings, topics: Topics, environment: dict[str, str]
) -> None:
    code, said = await doctor(environment, DRM_KAFKA_BOOTSTRAP=f"127.0.0.1:{free_port()}")
    assert code == 1
    assert "✗ Kafka Kafka does not answer" in said
    assert "✓ migrations all applied" in said
    code, said = await doctor(environment, DRM_POSTGRES_DSN=f"postgresql://nobody@127.0.0.1:{free_port()}/none")
    assert code == 1
    assert "✓ topics" in said
    assert "✗ Postgres does not answer" in said
    assert "set DRM_POSTGRES_DSN" in said


async def test_a_wrong_setting_is_named(environment: dict[str, str]) -> None:
    code, said = await doctor(environment, DRM_EDGE_PORT="eighty")
    assert code == 1
    assert "✗ settings DRM_EDGE_PORT: Input should be a valid integer" in said


@pytest.mark.parametrize(
    ("received", "which"), [(timedelta(hours=1), "behind the edge's"), (timedelta(hours=-1), "ahead of the edge's")]
)
async def test_clocks_that_disagree_are_found(
    settings: Settings, topics: Topics, environment: dict[str, str], received: timedelta, which: str
) -> None:
    await write(settings, topics, datetime.now(UTC) + received)
    code, said = await doctor(environment)
    assert code == 1
    assert which in said
    assert "NTP" in said
