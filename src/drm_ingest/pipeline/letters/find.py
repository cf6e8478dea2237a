"""Find dead letters in their topic; joins no group, commits nothing."""

import re
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import orjson
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError

from drm_ingest.kafka.connection import KafkaUnreachable, connection, stop
from drm_ingest.kafka.dead_letters import reason_of, replayed_offset
from drm_ingest.kafka.partition import murmur2
from drm_ingest.kafka.topics import Topics
from drm_ingest.settings import Settings

RECORDS_MAX = 500
FETCH_WAIT_MS = 10  # all that is wanted is there; what waits at the end of a partition keeps the next one waiting
SILENT_MS = 10_000  # with records still to come

Position = tuple[int, int]  # partition and offset in the topic of the dead letters
_position = re.compile(r"(\d{1,9}):(\d{1,18})").fullmatch


class NoSuchTopic(Exception):
    """The topic is not there; the message says what to do."""


def position(text: str) -> Position | None:
    """Return the position that is written so, `partition:offset`; None: it is none."""
    found = _position(text)
    return (int(found[1]), int(found[2])) if found else None


class Letter:
    """One dead letter."""

    def __init__(self, record: ConsumerRecord, *, replayed: bool = False) -> None:
        self.record = record
        self.replayed = replayed
        self.reason: Mapping[str, str] = reason_of(record)

    @property
    def position(self) -> Position:
        return self.record.partition, self.record.offset

    @property
    def name(self) -> str:
        """What a person calls it."""
        return f"{self.record.partition}:{self.record.offset}"

    @property
    def value(self) -> bytes:
        """The original bytes."""
        value: bytes = self.record.value or b""
        return value

    @property
    def key(self) -> bytes:
        """Of the original: the subject, where an edge wrote it."""
        key: bytes = self.record.key or b""
        return key

    @property
    def set_aside_at(self) -> datetime:
        return datetime.fromtimestamp(self.record.timestamp / 1000, UTC)

    @property
    def origin(self) -> str:
        """Where it was read: topic/partition/offset."""
        return "/".join(self.reason.get(name, "?") for name in ("topic", "partition", "offset"))

    @cached_property
    def event(self) -> dict[str, Any]:
        """The attributes as far as they can be read; empty where they cannot."""
        try:
            event = orjson.loads(self.value)
        except orjson.JSONDecodeError:
            return {}
        return event if isinstance(event, dict) else {}


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which letters; what is None or empty does not count."""

    stage: str | None = None
    code: str | None = None
    type: str | None = None
    subject: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    positions: frozenset[Position] = field(default_factory=frozenset)

    @property
    def everything(self) -> bool:
        """Whether nothing is left out."""
        return self == Wanted()

    def fits(self, letter: Letter) -> bool:
        """Return whether it is one of those."""
        return (
            (not self.positions or letter.position in self.positions)
            and self.stage in (None, letter.reason.get("stage"))
            and self.code in (None, letter.reason.get("code"))
            and (self.subject is None or letter.key == self.subject.encode())
            and (self.since is None or letter.set_aside_at >= self.since)
            and (self.until is None or letter.set_aside_at < self.until)
            and (self.type is None or letter.event.get("type") == self.type)
        )


async def find(settings: Settings, wanted: Wanted) -> AsyncIterator[Letter]:
    """Yield those that are there now, each partition in order.

    Raises:
        KafkaUnreachable: no bootstrap server answers, or the leader of a partition is away.
        NoSuchTopic
    """
    topic = Topics.of(settings).dead_letters
    consumer = AIOKafkaConsumer(
        auto_offset_reset="none", enable_auto_commit=False, fetch_max_wait_ms=FETCH_WAIT_MS, **connection(settings)
    )
    try:
        await consumer.start()
        if topic not in await consumer.topics():
            raise NoSuchTopic(f"there is no topic {topic}; run `drm-ingest topics`, or see DRM_TOPIC_PREFIX")
        for partition in _partitions(topic, wanted, settings):
            (begin,) = (await consumer.beginning_offsets([partition])).values()
            (end,) = (await consumer.end_offsets([partition])).values()
            if wanted.since is not None:
                (later,) = (await consumer.offsets_for_times({partition: _ms(wanted.since)})).values()
                begin = max(begin, end if later is None else later.offset)
            if wanted.positions:  # the note of a letter stands behind it
                begin = max(begin, min(offset for number, offset in wanted.positions if number == partition.partition))
            notes = {
                offset
                async for record in _read(consumer, partition, begin, end, settings)
                if (offset := replayed_offset(record)) is not None
            }
            async for record in _read(consumer, partition, begin, end, settings):
                if replayed_offset(record) is None:
                    letter = Letter(record, replayed=record.offset in notes)
                    if wanted.fits(letter):
                        yield letter
    except (KafkaError, OSError) as error:
        raise KafkaUnreachable(settings, error) from error
    finally:
        await stop(consumer)


def _partitions(topic: str, wanted: Wanted, settings: Settings) -> Iterable[TopicPartition]:
    numbers: Iterable[int] = range(settings.topic_partitions)
    if wanted.positions:
        numbers = sorted({number for number, _ in wanted.positions}.intersection(numbers))
    elif wanted.subject is not None:
        numbers = [murmur2(wanted.subject.encode()) % settings.topic_partitions]
    return [TopicPartition(topic, number) for number in numbers]


async def _read(
    consumer: AIOKafkaConsumer, partition: TopicPartition, begin: int, end: int, settings: Settings
) -> AsyncIterator[ConsumerRecord]:
    if begin >= end:
        return
    consumer.assign([partition])
    consumer.seek(partition, begin)
    at = begin
    while at < end:
        try:
            batches = await consumer.getmany(partition, timeout_ms=SILENT_MS, max_records=RECORDS_MAX)
        except OffsetOutOfRangeError:  # retention was faster than we
            (at,) = (await consumer.beginning_offsets([partition])).values()
            consumer.seek(partition, at)
            continue
        records = batches.get(partition, [])
        if not records:
            raise KafkaUnreachable(settings, f"partition {partition.partition} of {partition.topic} is silent")
        for record in records:
            if record.offset < end:
                yield record
        at = records[-1].offset + 1


def _ms(time: datetime) -> int:
    return round(time.timestamp() * 1000)
