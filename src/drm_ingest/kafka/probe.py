"""What a Kafka is, for `drm-ingest doctor`: who reads how far behind, and whose clock is off."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import GroupCoordinatorNotAvailableError, KafkaError

from drm_ingest.event import HEADER_RECEIPT, Receipt
from drm_ingest.kafka.connection import KafkaUnreachable, connection, stop
from drm_ingest.kafka.topics import admin_client
from drm_ingest.settings import Settings

READ_TIMEOUT_MS = 3000


@dataclass(frozen=True, slots=True)
class GroupProbe:
    """One consumer group."""

    members: int
    lag_events: int | None  # None: it never committed


@dataclass(frozen=True, slots=True)
class NewestRecord:
    """The clocks that the newest record of a topic saw."""

    written_at: datetime  # the broker's
    received_at: datetime | None  # the edge's, a moment earlier


async def probe_group(settings: Settings, group: str) -> GroupProbe:
    """Return who reads for a group of ours (without the prefix), and how far behind it is.

    Raises:
        KafkaUnreachable
    """
    name = f"{settings.topic_prefix}.{group}"
    async with admin_client(settings) as admin:
        try:
            (answer,) = await admin.describe_consumer_groups([name])
            committed = await admin.list_consumer_group_offsets(name)
        except GroupCoordinatorNotAvailableError:
            return GroupProbe(0, None)  # no group ever joined: Kafka makes the topic of the offsets for the first
    members = sum(len(described[5]) for described in answer.groups)
    if not committed:
        return GroupProbe(members, None)
    consumer = AIOKafkaConsumer(**connection(settings))
    try:
        await consumer.start()
        ends = await consumer.end_offsets(list(committed))
    except (KafkaError, OSError) as error:
        raise KafkaUnreachable(settings, error) from error
    finally:
        await stop(consumer)
    lag = sum(max(0, ends[partition] - offset.offset) for partition, offset in committed.items() if offset.offset >= 0)
    return GroupProbe(members, lag)


async def probe_newest(settings: Settings, topic: str) -> NewestRecord | None:
    """Return what the newest record of a topic tells of clocks; None while it is empty, or not there.

    Raises:
        KafkaUnreachable
    """
    consumer = AIOKafkaConsumer(enable_auto_commit=False, auto_offset_reset="earliest", **connection(settings))
    try:
        await consumer.start()
        if topic not in await consumer.topics():
            return None
        record = await _newest(consumer, [TopicPartition(topic, number) for number in range(settings.topic_partitions)])
    except (KafkaError, OSError) as error:
        raise KafkaUnreachable(settings, error) from error
    finally:
        await stop(consumer)
    if record is None:
        return None
    header = dict(record.headers).get(HEADER_RECEIPT)
    received_at = None
    if header is not None:
        try:
            received_at = msgspec.json.decode(header, type=Receipt).received_at
        except msgspec.DecodeError:
            received_at = None  # not written by an edge
    return NewestRecord(datetime.fromtimestamp(record.timestamp / 1000, UTC), received_at)


async def _newest(consumer: AIOKafkaConsumer, partitions: Collection[TopicPartition]) -> ConsumerRecord | None:
    beginnings = await consumer.beginning_offsets(list(partitions))
    ends = await consumer.end_offsets(list(partitions))
    filled = [partition for partition in partitions if ends[partition] > beginnings[partition]]
    if not filled:
        return None
    consumer.assign(filled)
    newest: ConsumerRecord | None = None
    for partition in filled:
        consumer.seek(partition, ends[partition] - 1)
    for partition in filled:
        for records in (await consumer.getmany(partition, timeout_ms=READ_TIMEOUT_MS, max_records=1)).values():
            for record in records:
                if newest is None or record.timestamp > newest.timestamp:
                    newest = record
    return newest
