"""The steps of enrichment, in order: a record of the ingress topic becomes an event of its family, or a dead letter.

read ─▶ place in time ─▶ family ─▶ context ─▶ a retry? ─▶ user agent ─▶ splice ─▶ too many dead letters? ─▶ append
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import msgspec
import structlog
from aiokafka import ConsumerRecord
from msgspec import UNSET

from drm_ingest.errors import EventCode
from drm_ingest.event import CONTENT_TYPE_EVENT, TIME_MIN, Assigned, TimeQuality, identity_source, occurred_at
from drm_ingest.kafka import dead_letters
from drm_ingest.kafka.dead_letters import DeadLetter
from drm_ingest.kafka.topics import Topics
from drm_ingest.kafka.writer import Delivery, RecordTooLarge, Writer, WriterFull
from drm_ingest.pipeline.brake import Brake
from drm_ingest.pipeline.enrich.context import Context
from drm_ingest.pipeline.enrich.directory import Contexts
from drm_ingest.pipeline.enrich.ingress import IngressReader, Received, Sent, Unreadable
from drm_ingest.pipeline.enrich.remembered import Remembered
from drm_ingest.pipeline.enrich.user_agent import UserAgents
from drm_ingest.pipeline.splice import fragment, splice, without
from drm_ingest.schema import UNCLASSIFIED, Schemas
from drm_ingest.settings import Settings

STAGE = "enrich"
APP_TYPES = "app."
APP_FAMILY = "interaction"
RECORD_OVERHEAD_BYTES = 1024  # more than a record of ours has around its key and value
SPECVERSION = fragment(specversion="1.0")
HEADERS = [("content-type", CONTENT_TYPE_EVENT)]  # one list for all: the writer takes lists as they are

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Done:
    """What became of the first `records` of those given; true once Kafka has acknowledged what was appended."""

    records: int = 0
    enriched: int = 0
    duplicates: int = 0
    dead_letters: int = 0
    received_at: datetime | None = None  # of the first event
    identities: dict[str, bytes] = field(default_factory=dict)  # appended: identity → content hash


@dataclass(frozen=True, slots=True)
class Route:
    """Where events of a type go."""

    topic: str
    from_app: bool
    attributes: bytes


class Enriched(NamedTuple):
    """An event in context, on its way to its topic."""

    topic: str
    value: bytes
    identity: str
    content_hash: bytes


class Steps:
    """Enriches records; knows nothing of partitions' order, of retries and of offsets (see enrich.py)."""

    def __init__(
        self, settings: Settings, schemas: Schemas, writer: Writer, user_agents: UserAgents, brake: Brake
    ) -> None:
        self._brake = brake
        topics = Topics.of(settings)
        self._writer = writer
        self._ingress = IngressReader()
        self._topics = topics
        self._event_bytes_max = settings.writer_batch_bytes_max - RECORD_OVERHEAD_BYTES
        self._bytes_max = settings.writer_batch_bytes_max // 2
        self._user_agents = user_agents
        self._future_max = timedelta(seconds=settings.event_future_max_s)
        self._json = msgspec.json.Encoder().encode
        self._qualities = {quality: quality.value.encode() for quality in TimeQuality}
        self._routes = {
            schema.type: Route(
                topics.events(schema.family),
                from_app=schema.family == APP_FAMILY or schema.type.startswith(APP_TYPES),
                attributes=b"",
            )
            for schema in schemas
        }
        unclassified = topics.events(UNCLASSIFIED)
        self._unclassified = Route(unclassified, from_app=False, attributes=fragment(unclassified=True))
        self._unclassified_app = Route(unclassified, from_app=True, attributes=fragment(unclassified=True))

    def enrich(
        self,
        records: Sequence[ConsumerRecord],
        contexts: Contexts,
        remembered: Remembered,
        delivery: Delivery,
        bytes_max: int,
    ) -> Done:
        """Append what these records become, up to `bytes_max`; stop early where the writer is full.

        Raises:
            Braked: too many are dead letters; nothing was appended.
        """
        worked_out, received_at = self._work_out(records, contexts, remembered, bytes_max)
        letters = [out for out in worked_out if isinstance(out, DeadLetter)]
        if letters:
            self._brake.check(len(letters), len(worked_out), letters[-1].detail)
        done = Done(received_at=received_at)
        for record, out in zip(records, worked_out, strict=False):
            try:
                if out is None:
                    done.duplicates += 1
                elif isinstance(out, DeadLetter):
                    self._bury(out, delivery, done)
                else:
                    self._append(out, record, delivery, done)
            except WriterFull:
                break
            done.records += 1
        return done

    def passed(self, done: Done) -> None:
        """Remember what became of these, once Kafka has acknowledged them."""
        self._brake.passed(done.dead_letters, done.records)

    def _work_out(
        self, records: Sequence[ConsumerRecord], contexts: Contexts, remembered: Remembered, bytes_max: int
    ) -> tuple[list[Enriched | DeadLetter | None], datetime | None]:
        """Return what the first records become (None: a retry), and when the first event of them was received."""
        worked_out: list[Enriched | DeadLetter | None] = []
        identities: dict[str, bytes] = {}
        first_received: datetime | None = None
        bytes_ = defects = 0
        for record in records:
            out: Enriched | DeadLetter | None
            try:
                out, received = self._enrich(record, contexts, remembered, identities)
                first_received = first_received or received.receipt.received_at
            except Unreadable as error:
                out = DeadLetter(record, STAGE, EventCode.UNREADABLE, str(error))
            except Exception as error:
                # A defect of ours that one event in a million meets must not hold up its partition for ever. One that
                # every event meets must not bury them all: the brake sees to it.
                if not defects:  # one trace a batch: a braked worker meets all of them again at each attempt
                    log.exception("a defect", partition=record.partition, offset=record.offset)
                defects += 1
                out = DeadLetter(record, STAGE, EventCode.UNREADABLE, f"enrich could not cope with it: {error!r}")
            worked_out.append(out)
            if out is not None:
                bytes_ += len(record.value or b"") if isinstance(out, DeadLetter) else len(out.value)
                if bytes_ >= bytes_max:
                    break
        return worked_out, first_received

    def _enrich(
        self,
        record: ConsumerRecord,
        contexts: Contexts,
        remembered: Remembered,
        identities: dict[str, bytes],
    ) -> tuple[Enriched | None, Received]:
        """Return the event in context, None for a retry; `identities` are those of the batch so far."""
        sent, received, assigned, content_hash = self._ingress.read(record)
        time, quality = self._place_in_time(sent, received)
        route = self._routes.get(sent.type) or self._route_unclassified(sent.type)
        subject = sent.subject or assigned.subject
        context = contexts.get(record.key)
        if context is None or context.subject != subject:
            raise Unreadable("its key is not its subject")
        id_, source, value, missing = self._complete(record.value, sent, received, assigned, context)
        identity = f"{subject}\0{source}\0{id_}"
        if identities.get(identity) == content_hash or remembered.holds(identity, content_hash):
            return None, received
        attributes = context.attributes if context.since <= time < context.until else context.at(time)
        if route.from_app and received.receipt.user_agent:
            attributes += self._user_agents.attributes(received.receipt.user_agent)
        # One format is three times as fast as encoding an object of these attributes.
        facts = b',"occurredat":%b,"timequality":"%b","contenthash":"%b","ingressposition":"%d:%d"' % (
            self._json(time),
            self._qualities[quality],
            content_hash.hex().encode(),
            record.partition,
            record.offset,
        )
        event = splice(value, (missing, received.attributes, facts, attributes, route.attributes))
        if len(event) + len(record.key) > self._event_bytes_max:
            raise Unreadable(f"too large for a batch once enriched: {len(event)} bytes")
        identities[identity] = content_hash
        return Enriched(route.topic, event, identity, content_hash), received

    def _append(self, out: Enriched, record: ConsumerRecord, delivery: Delivery, done: Done) -> None:
        self._writer.append(out.topic, record.partition, record.key, out.value, HEADERS, delivery)
        done.identities[out.identity] = out.content_hash
        done.enriched += 1

    def _place_in_time(self, sent: Sent, received: Received) -> tuple[datetime, TimeQuality]:
        """Return when it happened, in UTC."""
        if sent.time and sent.time < TIME_MIN:  # the edge refuses it too
            raise Unreadable("its time is that of a clock that was never set")
        time, quality = occurred_at(
            sent.time or None, received.receipt.received_at, received.clock_offset, self._future_max
        )
        return (time if time.tzinfo is UTC else time.astimezone(UTC)), quality

    def _route_unclassified(self, type_: str) -> Route:
        return self._unclassified_app if type_.startswith(APP_TYPES) else self._unclassified

    def _complete(
        self, value: bytes, sent: Sent, received: Received, assigned: Assigned, context: Context
    ) -> tuple[str, str, bytes, bytes]:
        """Return the event's id, the source of its identity, its bytes, and the required attributes it lacks."""
        missing = b""
        empty = []  # there, but without a value: what is added would be there twice
        if not (id_ := sent.id or assigned.id):
            raise Unreadable("it has no id, and none was assigned")
        if not sent.id:
            missing += fragment(id=id_)
            if sent.id is not UNSET:
                empty.append("id")
        if not sent.subject:
            missing += fragment(subject=context.subject)
            if sent.subject is not UNSET:
                empty.append("subject")
        if sent.source:
            source = identity_source(context.subject, sent.source)
        else:
            source = assigned.source or (received.receipt.sender if context.is_party else "")
            missing += fragment(source=source) if source else context.source
            if sent.source is not UNSET:
                empty.append("source")
        if not sent.specversion:
            missing += SPECVERSION
            if sent.specversion is not UNSET:
                empty.append("specversion")
        if empty:
            value = without(value, empty)
        return id_, source, value, missing

    def _bury(self, letter: DeadLetter, delivery: Delivery, done: Done) -> None:
        """Append a dead letter; raises WriterFull."""
        out = dead_letters.outgoing(self._writer, self._topics, letter)
        try:
            self._writer.append(out.topic, out.partition, out.key, out.value, out.headers, delivery)
        except RecordTooLarge:
            out = dead_letters.outgoing(self._writer, self._topics, dead_letters.cut(letter, self._bytes_max))
            self._writer.append(out.topic, out.partition, out.key, out.value, out.headers, delivery)
        done.dead_letters += 1
