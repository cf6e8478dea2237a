"""Show what arrives in a topic: `drm-ingest tail`. It joins no group, commits nothing and disturbs nobody."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass
from difflib import get_close_matches
from time import monotonic

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError

from drm_ingest.event import PARTY_PREFIX
from drm_ingest.kafka.connection import KafkaUnreachable, connection, stop
from drm_ingest.kafka.dead_letters import replayed_offset
from drm_ingest.kafka.partition import murmur2
from drm_ingest.kafka.show import Show, change_of, event_of
from drm_ingest.kafka.topics import Topics
from drm_ingest.schema import UNCLASSIFIED, Schemas
from drm_ingest.settings import Settings

RECORDS_MAX = 500
POLL_S = 0.2

DEAD_LETTERS = "dead-letters"
RELATIONSHIP_CHANGES = "relationship-changes"


def close_to(name: str, schemas: Schemas) -> list[str]:
    """Return what there is to tail that is called almost so, or ends so."""
    there = (*(schema.type for schema in schemas), *schemas.families, DEAD_LETTERS, RELATIONSHIP_CHANGES)
    called = {part: one for one in there for part in (one.rpartition(".")[2], one)}
    return list(dict.fromkeys(called[close] for close in get_close_matches(name, called)))


class NothingToTail(Exception):
    """The topic is not there; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to show: a family's topic, and of it perhaps one type and one subject."""

    topic: str
    type: str | None = None
    subject: str | None = None

    @classmethod
    def of(cls, settings: Settings, schemas: Schemas, name: str, subject: str | None) -> "Wanted":
        """`name` is a type, a family, `unclassified`, `dead-letters` or `relationship-changes`.

        A type without a schema is looked for in `unclassified`. Of changes `subject` is the device or `party:<id>`.
        """
        if name == RELATIONSHIP_CHANGES:
            return cls(Topics.of(settings).relationship_changes, None, subject)
        if name == DEAD_LETTERS:
            return cls(Topics.of(settings).dead_letters, None, subject)
        if name in schemas.families:
            return cls(Topics.of(settings).events(name), None, subject)
        return cls(Topics.of(settings).events(schemas.family(name)), name, subject)

    @property
    def dead_letters(self) -> bool:
        """Whether it is what was set aside, which is shown with its reason."""
        return self.topic.endswith(f".{DEAD_LETTERS}")

    @property
    def changes(self) -> bool:
        """Whether it is what changed in records, which has the party as its key and not what the relation is on."""
        return self.topic.endswith(f".{RELATIONSHIP_CHANGES}")

    @property
    def key(self) -> bytes | None:
        """The key of all that is wanted; None: there are several."""
        if self.changes and self.subject is not None:
            _, of_party, party = self.subject.partition(PARTY_PREFIX)
            return party.encode() if of_party else None
        return None if self.subject is None else self.subject.encode()

    @property
    def unclassified(self) -> bool:
        """Whether it is a type that has no schema."""
        return self.type is not None and self.topic.endswith(f".{UNCLASSIFIED}")

    def fits(self, record: ConsumerRecord) -> bool:
        """Whether to show it."""
        if self.dead_letters and replayed_offset(record) is not None:
            return False
        if self.key is not None and record.key != self.key:
            return False
        if self.changes and self.key is None and self.subject is not None:
            return change_of(record).get("subject") == self.subject
        return self.type is None or event_of(record).get("type") == self.type


async def tail(
    settings: Settings,
    wanted: Wanted,
    show: Show,
    *,
    from_beginning: bool = False,
    limit: int | None = None,
    timeout_s: float | None = None,
    on_ready: Callable[[int], None] = lambda _: None,
) -> int:
    """Show events until `limit` are shown or `timeout_s` has passed; return how many were.

    `on_ready` is called with the number of partitions once nothing that is written from now on can be missed.

    Raises:
        KafkaUnreachable: no bootstrap server answers.
        NothingToTail: there is no such topic.
    """
    shown = 0
    until = None if timeout_s is None else monotonic() + timeout_s
    consumer = AIOKafkaConsumer(auto_offset_reset="none", enable_auto_commit=False, **connection(settings))
    try:
        await consumer.start()
        partitions = await _partitions(consumer, wanted, settings)
        consumer.assign(partitions)
        await _position(consumer, partitions, from_beginning=from_beginning)
        on_ready(len(partitions))
        async for record in _records(consumer, until):
            if wanted.fits(record):
                show(record)
                shown += 1
                if shown == limit:
                    break
    except BrokenPipeError:  # whoever is shown them has left
        raise
    except (KafkaError, OSError) as error:
        raise KafkaUnreachable(settings, error) from error
    finally:
        await stop(consumer)
    return shown


async def _partitions(consumer: AIOKafkaConsumer, wanted: Wanted, settings: Settings) -> list[TopicPartition]:
    if wanted.topic not in await consumer.topics():
        raise NothingToTail(f"there is no topic {wanted.topic}; run `drm-ingest topics`, or see DRM_TOPIC_PREFIX")
    if wanted.key is not None:
        return [TopicPartition(wanted.topic, murmur2(wanted.key) % settings.topic_partitions)]
    return [TopicPartition(wanted.topic, number) for number in range(settings.topic_partitions)]


async def _position(
    consumer: AIOKafkaConsumer, partitions: Collection[TopicPartition], *, from_beginning: bool
) -> None:
    ask = consumer.beginning_offsets if from_beginning else consumer.end_offsets
    for partition, offset in (await ask(list(partitions))).items():
        consumer.seek(partition, offset)


async def _records(consumer: AIOKafkaConsumer, until: float | None) -> AsyncIterator[ConsumerRecord]:
    """Yield what arrives, what came together in the order of the broker's clock."""
    while until is None or monotonic() < until:
        wait_s = POLL_S if until is None else min(POLL_S, max(0.001, until - monotonic()))
        try:
            batches = await consumer.getmany(timeout_ms=round(wait_s * 1000) or 1, max_records=RECORDS_MAX)
        except OffsetOutOfRangeError as error:  # retention was faster than we; this is only for looking
            await _position(consumer, error.args[0], from_beginning=True)
            continue
        for record in sorted((record for records in batches.values() for record in records), key=_written_at):
            yield record
        await asyncio.sleep(0)


def _written_at(record: ConsumerRecord) -> tuple[int, int]:
    return record.timestamp, record.offset
