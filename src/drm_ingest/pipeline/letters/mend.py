"""Make of a dead letter the record that goes back where it came from; id, time and the facts of its receipt stay.

A letter of enrich goes to the ingress topic, one of attach to the topic of its family, both to the partition it was
read from, so that it takes the same way again. Mended bytes get a content hash of their own: they are what they are.
"""

from datetime import UTC, datetime

import msgspec
from aiokafka import ConsumerRecord
from msgspec import UNSET, Raw, UnsetType

from drm_ingest.event import (
    HEADER_ASSIGNED,
    HEADER_CONTENT_HASH,
    HEADER_RECEIPT,
    PARTY_PREFIX,
    Assigned,
    Receipt,
    content_hash,
    identity_key,
    identity_source,
)
from drm_ingest.kafka.dead_letters import own_headers
from drm_ingest.kafka.topics import Topics
from drm_ingest.kafka.writer import Outgoing, Writer
from drm_ingest.pipeline.attach import decode
from drm_ingest.pipeline.enrich import ingress
from drm_ingest.pipeline.letters.find import Letter
from drm_ingest.pipeline.splice import fragment, splice, without

SENDER = "dead-letters"  # of a mended event of which nothing tells who sent it


class CannotReplay(Exception):
    """This letter cannot be written again as it is; the message says what to do."""


class Attributes(msgspec.Struct):
    """What a content hash and an identity are made of, in an event of either stage."""

    type: str
    id: str | None = None
    subject: str | None = None
    source: str | None = None
    time: str | None = None
    data: Raw | UnsetType = UNSET


_read = msgspec.json.Decoder(Attributes).decode


def outgoing(writer: Writer, topics: Topics, letter: Letter, mended: bytes | None = None) -> Outgoing:
    """Return the record to write; `mended` is what a person made of its value.

    Raises:
        CannotReplay: see there.
    """
    topic, partition = letter.reason.get("topic", ""), letter.reason.get("partition", "")
    if topic != topics.ingress and not topic.startswith(topics.events("")):
        raise CannotReplay(f"it does not say from which topic of ours it came, but {topic!r}")
    if not partition.isdecimal():
        raise CannotReplay(f"it does not say from which partition it came, but {partition!r}")
    if "cut" in letter.reason and mended is None:
        raise CannotReplay(
            f"only the first {len(letter.value)} of its {letter.reason['cut']} bytes are here; take the whole from "
            f"{letter.origin}, make it smaller, and replay it with --from-file"
        )
    if mended is None:
        return Outgoing(topic, int(partition), letter.key, letter.value, own_headers(letter.record))
    try:
        return (_ingress if topic == topics.ingress else _events)(writer, topic, int(partition), letter, mended)
    except (ingress.Unreadable, decode.Unreadable, msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise CannotReplay(f"what was made of it would be set aside again: {error}") from None


def _ingress(writer: Writer, topic: str, partition: int, letter: Letter, value: bytes) -> Outgoing:
    event, facts = _read(value), dict(own_headers(letter.record))
    assigned = _assigned(facts)
    subject = event.subject or assigned.subject
    if not subject or not (event.id or assigned.id):
        raise CannotReplay("what was made of it has no subject or no id; nobody can tell them but you")
    receipt = facts.get(HEADER_RECEIPT)
    if receipt is None or _receipt(receipt) is None:
        made = Receipt(received_at=letter.set_aside_at, request_id=f"dead-letter-{letter.name}", sender=SENDER)
        receipt = msgspec.json.encode(made)
    headers = [(HEADER_RECEIPT, receipt), (HEADER_CONTENT_HASH, _hash(event))]
    if assigned != Assigned():
        headers.append((HEADER_ASSIGNED, msgspec.json.encode(assigned)))
    key = subject.encode()
    if key != letter.key:
        partition = writer.partition_for(topic, key)
    ingress.IngressReader().read(_as_read(topic, partition, key, value, headers))
    return Outgoing(topic, partition, key, value, headers)


def _events(writer: Writer, topic: str, partition: int, letter: Letter, value: bytes) -> Outgoing:
    event = _read(value)
    value = splice(without(value, ("contenthash",)), (fragment(contenthash=_hash(event).hex()),))
    key = (event.subject or "").encode()
    if key != letter.key:
        partition = writer.partition_for(topic, key)
    headers = own_headers(letter.record)
    decode.Decoder().row(_as_read(topic, partition, key, value, headers))
    return Outgoing(topic, partition, key, value, headers)


def identity(out: Outgoing) -> tuple[bytes, bytes] | None:
    """Return the identity key and the content hash under which it will be stored; None where that cannot be told."""
    try:
        event, facts = _read(out.value), dict(out.headers)
        receipt, assigned = _receipt(facts.get(HEADER_RECEIPT, b"")), _assigned(facts)
        subject, id_ = event.subject or assigned.subject or "", event.id or assigned.id or ""
        source = identity_source(subject, event.source) if event.source else assigned.source or ""
        if not event.source and not source and subject.startswith(PARTY_PREFIX) and receipt is not None:
            source = receipt.sender
        return identity_key(subject, source, id_), facts.get(HEADER_CONTENT_HASH) or _hash(event)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None


def _hash(event: Attributes) -> bytes:
    return content_hash(event.type, event.time, b"" if event.data is UNSET else memoryview(event.data))


def _receipt(header: bytes) -> Receipt | None:
    try:
        return msgspec.json.decode(header, type=Receipt)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None


def _assigned(facts: dict[str, bytes]) -> Assigned:
    try:
        return msgspec.json.decode(facts.get(HEADER_ASSIGNED, b"{}"), type=Assigned)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return Assigned()


def _as_read(topic: str, partition: int, key: bytes, value: bytes, headers: list[tuple[str, bytes]]) -> ConsumerRecord:
    now_ms = round(datetime.now(UTC).timestamp() * 1000)
    return ConsumerRecord(topic, partition, 0, now_ms, 1, key, value, None, len(key), len(value), tuple(headers))
