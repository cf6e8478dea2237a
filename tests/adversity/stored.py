"""What Postgres and Kafka hold, for tests that hurt who writes there; a connection for each look, so any may break."""

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import asyncpg
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.structs import OffsetAndMetadata

from drm_ingest.settings import Settings

Positions = Mapping[TopicPartition, int]


async def value(dsn: str, sql: str, *arguments: object) -> Any:
    """Return the first value of a query."""
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(sql, *arguments)
    finally:
        await connection.close()


async def until(dsn: str, sql: str, *arguments: object, within_s: float = 60.0) -> float:
    """Wait until a query answers true; return the seconds that took."""
    began = time.monotonic()
    connection = await asyncpg.connect(dsn)
    try:
        while not await connection.fetchval(sql, *arguments):
            assert time.monotonic() - began < within_s, f"not so within {within_s:.0f} s: {sql} {arguments}"
            await asyncio.sleep(0.02)
    finally:
        await connection.close()
    return time.monotonic() - began


async def positions(dsn: str) -> Positions:
    """Return what attach has stored of each partition that it has stored anything of."""
    connection = await asyncpg.connect(dsn)
    try:
        rows = await connection.fetch(
            'select topic, "partition", next_offset from consumer_position where next_offset > 0'
        )
    finally:
        await connection.close()
    return {TopicPartition(topic, partition): offset for topic, partition, offset in rows}


async def committed(settings: Settings, group: str) -> Positions:
    """Return what a group has committed in Kafka."""
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka_bootstrap)
    await admin.start()
    try:
        found: dict[TopicPartition, OffsetAndMetadata] = await admin.list_consumer_group_offsets(
            f"{settings.topic_prefix}.{group}"
        )
    finally:
        await admin.close()
    return {partition: offset.offset for partition, offset in found.items() if offset.offset > 0}
