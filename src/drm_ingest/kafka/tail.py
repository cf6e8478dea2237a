"""Show enriched events as they arrive: `drm-ingest tail`. It joins no group, commits nothing and disturbs nobody."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from time import monotonic

import orjson
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError
from rich.console import Console
from rich.text import Text

from drm_ingest.event import Enrichment
from drm_ingest.kafka.connection import KafkaUnreachable, connection, stop
from drm_ingest.kafka.dead_letters import reason_of, replayed_offset
from drm_ingest.kafka.partition import murmur2
from drm_ingest.kafka.topics import Topics
from drm_ingest.schema import UNCLASSIFIED, Schemas
from drm_ingest.settings import Settings

RECORDS_MAX = 500
POLL_S = 0.2

DEAD_LETTERS = "dead-letters"

Show = Callable[[ConsumerRecord], None]


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
        """`name` is a type, a family, `unclassified` or `dead-letters`.

        A type without a schema is looked for in `unclassified`.
        """
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
    def unclassified(self) -> bool:
        """Whether it is a type that has no schema."""
        return self.type is not None and self.topic.endswith(f".{UNCLASSIFIED}")

    def fits(self, record: ConsumerRecord) -> bool:
        """Whether to show it."""
        if self.dead_letters and replayed_offset(record) is not None:
            return False
        if self.subject is not None and record.key != self.subject.encode():
            return False
        return self.type is None or _event(record).get("type") == self.type


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
    if wanted.subject is not None:
        return [TopicPartition(wanted.topic, murmur2(wanted.subject.encode()) % settings.topic_partitions)]
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


# -- how it looks -------------------------------------------------------------------------------------------------


def as_lines(write: Callable[[bytes], object]) -> Show:
    """Return how events are shown to programs: one JSON document a line, as it is in Kafka."""

    def show(record: ConsumerRecord) -> None:
        value = record.value or b""
        write((value.replace(b"\n", b" ") if b"\n" in value else value) + b"\n")

    return show


def dead_letters_as_lines(write: Callable[[bytes], object]) -> Show:
    """Return how dead letters are shown to programs: key, reason and value as text, one JSON document a line."""

    def show(record: ConsumerRecord) -> None:
        write(orjson.dumps({"key": _text(record.key), **reason_of(record), "value": _text(record.value)}) + b"\n")

    return show


def dead_letters_as_text(console: Console) -> Show:
    """Return how dead letters are shown to people: when, who and why; where it was read; what it was."""

    def show(record: ConsumerRecord) -> None:
        reason = reason_of(record)
        set_aside = datetime.fromtimestamp(record.timestamp / 1000, UTC)
        head = Text(f"{set_aside:%Y-%m-%dT%H:%M:%SZ}  ")
        head.append(_text(record.key), style="bold cyan")
        head.append(f"  {reason.get('code', '')}", style="bold red")
        console.print(head, soft_wrap=True)
        said = "  ".join(reason[name] for name in ("pointer", "detail") if name in reason)
        if said:
            console.print(Text(f"  {said}"), soft_wrap=True)
        origin = "{topic}/{partition}/{offset}".format_map(defaultdict(lambda: "?", reason))
        console.print(
            Text(f"  set aside by {reason.get('stage', '?')}, read from {origin}", style="dim"), soft_wrap=True
        )
        console.print(Text(f"  {_text(record.value)}"), soft_wrap=True)

    return show


def _text(value: bytes | None) -> str:
    """Return text; bytes that are not UTF-8 become escapes."""
    return (value or b"").decode("utf-8", "backslashreplace")


def as_text(console: Console) -> Show:
    """Return how events are shown to people: when, who and what; the data; who held it and whatever else is known."""

    def show(record: ConsumerRecord) -> None:
        event = _event(record)
        if not event:
            console.print(Text(repr(record.value), style="red"))
            return
        head = Text(f"{event.get('occurredat', '')}  ")
        head.append(str(event.get("subject", "")), style="bold cyan")
        head.append(f"  {event.get('type', '')}", style="bold")
        console.print(head, soft_wrap=True)
        for name in ("data", "data_base64"):
            if name in event:
                console.print(Text(f"  {orjson.dumps(event[name]).decode()}"), soft_wrap=True)
        known = [f"{name}={event[name]}" for name in _TOLD if name in event]
        console.print(Text(f"  {'  '.join(known)}", style="dim"), soft_wrap=True)

    return show


_TOLD = ("id", "source", *(name for name in Enrichment.__struct_fields__ if name not in {"occurredat", "contenthash"}))


def _event(record: ConsumerRecord) -> dict[str, object]:
    try:
        event = orjson.loads(record.value or b"")
    except orjson.JSONDecodeError:
        return {}
    return event if isinstance(event, dict) else {}
