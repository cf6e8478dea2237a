"""Bury what cannot be stored: dead letters, durable in Kafka before anything moves past them."""

from collections.abc import Iterable, Sequence

from drm_ingest.kafka import dead_letters
from drm_ingest.kafka.dead_letters import DeadLetter
from drm_ingest.kafka.topics import Topics
from drm_ingest.kafka.writer import RecordTooLarge, Writer
from drm_ingest.postgres.dead import Dead
from drm_ingest.settings import Settings


class Undertaker:
    """Writes dead letters of attach, and returns when Kafka has them for good."""

    def __init__(self, settings: Settings, writer: Writer) -> None:
        self._bytes_max = settings.writer_batch_bytes_max // 2
        self._topics = Topics.of(settings)
        self._writer = writer

    async def __call__(self, dead: Sequence[Dead]) -> None:
        """Write all; raises NotAcknowledged."""
        letters = [DeadLetter(letter.record, "attach", letter.code, letter.detail) for letter in dead]
        try:
            await self._write(letters)
        except RecordTooLarge:  # those before it may be there twice then
            await self._write([dead_letters.cut(letter, self._bytes_max) for letter in letters])

    async def _write(self, letters: Iterable[DeadLetter]) -> None:
        await self._writer.write(dead_letters.outgoing(self._writer, self._topics, letter) for letter in letters)
