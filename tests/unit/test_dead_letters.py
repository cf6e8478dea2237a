"""A dead letter holds what was read, and tells where it was read and why it is one."""

import io

import pytest
from aiokafka import ConsumerRecord
from rich.console import Console

from drm_ingest.errors import EventCode
from drm_ingest.kafka.dead_letters import DeadLetter, outgoing, reason_of, replayed_offset
from drm_ingest.kafka.topics import Topics
from drm_ingest.kafka.writer import Outgoing, Writer
from drm_ingest.metrics import Metrics
from drm_ingest.pipeline.letters import mend, show
from drm_ingest.pipeline.letters.find import Letter
from drm_ingest.settings import Settings

TOPICS = Topics("drm")
REASON = {"stage": "attach", "code": "row_refused", "pointer": "/data", "detail": "naïve", "topic": "drm.events.x",
          "partition": "4", "offset": "1234"}  # fmt: skip


def read(record: Outgoing, topic: str = "drm.events.x", partition: int = 4, offset: int = 1234) -> ConsumerRecord:
    """What a reader makes of a record that was written."""
    return ConsumerRecord(
        topic, partition, offset, 0, 1, record.key, record.value, None, len(record.key), len(record.value),
        tuple(record.headers),
    )  # fmt: skip


def letter(record: ConsumerRecord, code: EventCode = EventCode.ROW_REFUSED) -> Outgoing:
    async def make() -> Outgoing:
        writer = Writer(Settings(), Metrics("attach"))
        return outgoing(writer, TOPICS, DeadLetter(record, "attach", code, "naïve", "/data"))

    import asyncio

    return asyncio.run(make())


ORIGINAL = read(Outgoing("drm.events.x", 4, b"meter-7", b'{"id":1}', [("content-type", b"x")]))


def test_it_has_the_key_value_and_headers_that_were_read_and_the_reason() -> None:
    written = letter(ORIGINAL)
    assert (written.topic, written.key, written.value) == ("drm.dead-letters", b"meter-7", b'{"id":1}')
    assert written.headers[0] == ("content-type", b"x")
    assert reason_of(read(written)) == REASON


def test_one_that_was_replayed_and_came_back_tells_only_the_last_reason() -> None:
    again = letter(read(letter(ORIGINAL), partition=2, offset=5), EventCode.ID_CONFLICT)
    assert reason_of(read(again)) == REASON | {"code": "id_conflict", "partition": "2", "offset": "5"}
    assert len(again.headers) == 1 + len(REASON)


def test_a_record_without_key_and_value_can_be_one() -> None:
    empty = ConsumerRecord("drm.ingress", 0, 0, 0, 1, None, None, None, -1, -1, (("n", None),))
    assert (letter(empty).key, letter(empty).value) == (b"", b"")


async def test_what_a_stranger_wrote_among_them_cannot_be_replayed_and_keeps_nobody_from_the_others() -> None:
    topic = ("dead-letter-topic", b"drm.ingress")
    for headers in ([], [topic], [topic, ("dead-letter-partition", b"x")], [("dead-letter-replayed", b"x")]):
        record = read(Outgoing("drm.dead-letters", 0, b"meter-7", b"{}", headers))
        assert replayed_offset(record) is None
        with pytest.raises(mend.CannotReplay, match="does not say"):
            mend.outgoing(Writer(Settings(), Metrics("enrich")), TOPICS, Letter(record))


def test_a_list_has_each_letter_on_one_line_however_narrow_it_is_shown() -> None:
    shown = io.StringIO()
    made = read(letter(ORIGINAL, EventCode.ID_CONFLICT), "drm.dead-letters", 2, 17)
    show.listed(Console(file=shown, width=40), [Letter(made), Letter(made, replayed=True)])
    lines = [line.split() for line in shown.getvalue().splitlines()]
    assert [line[0] for line in lines] == ["letter", "2:17", "2:17"]
    assert [line[-1] for line in lines] == ["detail", "naïve", "naïve"]
