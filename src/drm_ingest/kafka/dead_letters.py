"""Dead letters: the original bytes with the reason, acknowledged by Kafka before a worker moves past them.

A dead letter has the key and the value of the record that was read, that record's own headers, and after them, as text:
`dead-letter-stage`, `-code`, `-pointer`, `-detail` (the last two where there is one), and where it was read:
`-topic`, `-partition`, `-offset`. With these the record can be found again, and written again to where it came from.
Of a record that is too large for a batch of ours only the beginning is kept, without its headers: `-cut` tells how many
bytes it had. The whole stands where it was read, for as long as that topic keeps it.

Behind a letter that was replayed stands a note of that, in the same partition: the same key, no value, and in the
header `dead-letter-replayed` the offset of the letter.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from aiokafka import ConsumerRecord

from drm_ingest.errors import EventCode
from drm_ingest.kafka.topics import Topics
from drm_ingest.kafka.writer import Outgoing, Writer

HEADER_PREFIX = "dead-letter-"
DETAIL_CHARACTERS_MAX = 1000
KEY_BYTES_MAX = 4096  # of a record that is cut


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One record that cannot go on; `record` is what was read."""

    record: ConsumerRecord
    stage: str  # "enrich" or "attach"
    code: EventCode
    detail: str = ""
    pointer: str = ""
    cut_from_bytes: int | None = None  # the record is only the beginning of one of that size


def outgoing(writer: Writer, topics: Topics, letter: DeadLetter) -> Outgoing:
    """Return the record to write; give it to `Writer.write`, and move past the original when that returns."""
    record = letter.record
    reason = {
        "stage": letter.stage,
        "code": letter.code.value,
        "pointer": letter.pointer,
        "detail": letter.detail[:DETAIL_CHARACTERS_MAX],
        "topic": record.topic,
        "partition": str(record.partition),
        "offset": str(record.offset),
        "cut": "" if letter.cut_from_bytes is None else str(letter.cut_from_bytes),
    }
    key = record.key or b""
    return Outgoing(
        topic=topics.dead_letters,
        partition=writer.partition_for(topics.dead_letters, key),
        key=key,
        value=record.value or b"",
        headers=[
            *own_headers(record),  # without the reason of an earlier time: it was replayed, and is back
            *((HEADER_PREFIX + name, text.encode("utf-8", "replace")) for name, text in reason.items() if text),
        ],
    )


def cut(letter: DeadLetter, bytes_max: int) -> DeadLetter:
    """Return a letter that fits where its record (not one of ours) is too large, with what tells that record apart."""
    record = letter.record
    key, value = record.key or b"", record.value or b""
    if len(key) + len(value) + sum(len(name) + len(text or b"") for name, text in record.headers) <= bytes_max:
        return letter
    kept = replace(record, key=key[:KEY_BYTES_MAX], value=value[:bytes_max], headers=())
    note = f"{letter.detail} (of {len(value)} bytes the first {len(kept.value)} are kept, without its headers)"
    return replace(letter, record=kept, detail=note, cut_from_bytes=len(value))


def replayed(topic: str, partition: int, offset: int, key: bytes) -> Outgoing:
    """Return the note that the letter at that offset was replayed."""
    return Outgoing(topic, partition, key, b"", [(HEADER_PREFIX + "replayed", b"%d" % offset)])


def replayed_offset(record: ConsumerRecord) -> int | None:
    """Return the offset of the letter that this is a note of; None: it is a letter itself."""
    for name, value in record.headers:
        if name == HEADER_PREFIX + "replayed" and value is not None and value.isdigit():
            return int(value)
    return None


def own_headers(record: ConsumerRecord) -> list[tuple[str, bytes]]:
    """Return the headers that the record had before it became a letter."""
    return [(name, value or b"") for name, value in record.headers if not name.startswith(HEADER_PREFIX)]


def reason_of(record: ConsumerRecord) -> Mapping[str, str]:
    """Return why a dead letter is one: stage, code, pointer, detail, topic, partition and offset, as text."""
    return {
        name.removeprefix(HEADER_PREFIX): value.decode("utf-8", "replace")
        for name, value in record.headers
        if name.startswith(HEADER_PREFIX) and value is not None
    }
