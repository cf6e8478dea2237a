"""Dead letters: the original bytes with the reason, acknowledged by Kafka before a worker moves past them."""

from dataclasses import dataclass

from aiokafka import ConsumerRecord

from drm_ingest.errors import EventCode
from drm_ingest.kafka.writer import Outgoing, Writer


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One record that cannot go on; `record` is what was read."""

    record: ConsumerRecord
    stage: str  # "enrich" or "attach"
    code: EventCode
    detail: str = ""
    pointer: str = ""


def outgoing(writer: Writer, topic: str, letter: DeadLetter) -> Outgoing:
    """Return the record to write: key and value as read, and its own headers, followed by the reason's.

    Headers: dead-letter-stage, -code, -pointer, -detail, -topic, -partition, -offset (text, UTF-8).
    """
    raise NotImplementedError
