"""Bury what cannot be stored: dead letters, durable in Kafka before anything moves past them; but never too many."""

from collections.abc import Iterable, Sequence

from drm_ingest.errors import EventCode
from drm_ingest.kafka import dead_letters
from drm_ingest.kafka.dead_letters import DeadLetter
from drm_ingest.kafka.topics import Topics
from drm_ingest.kafka.writer import RecordTooLarge, Writer
from drm_ingest.pipeline.brake import Brake
from drm_ingest.postgres.store.dead import Dead
from drm_ingest.settings import Settings


class Undertaker:
    """Writes dead letters of attach, and returns when Kafka has them for good."""

    def __init__(self, settings: Settings, writer: Writer, brake: Brake) -> None:
        self._brake = brake
        self._bytes_max = settings.writer_batch_bytes_max // 2
        self._topics = Topics.of(settings)
        self._writer = writer

    def allow(self, dead: Sequence[Dead], events: int) -> None:
        """See whether so many of the events in hand may be buried; raises Braked."""
        if failed := _failed(dead):
            self._brake.check(len(failed), events, failed[-1].detail)

    def passed(self, dead: Sequence[Dead], events: int) -> None:
        """Remember what became of a batch."""
        self._brake.passed(len(_failed(dead)), events)

    async def bury(self, dead: Sequence[Dead]) -> None:
        """Write all; raises NotAcknowledged."""
        letters = [DeadLetter(letter.record, "attach", letter.code, letter.detail) for letter in dead]
        try:
            await self._write(letters)
        except RecordTooLarge:  # those before it may be there twice then
            await self._write([dead_letters.cut(letter, self._bytes_max) for letter in letters])

    async def _write(self, letters: Iterable[DeadLetter]) -> None:
        await self._writer.write(dead_letters.outgoing(self._writer, self._topics, letter) for letter in letters)


def _failed(dead: Sequence[Dead]) -> list[Dead]:
    """Leave out what its sender did wrong (see brake.py)."""
    return [letter for letter in dead if letter.code is not EventCode.ID_CONFLICT]
