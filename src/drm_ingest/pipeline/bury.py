"""Bury what cannot be stored: dead letters, durable in Kafka before anything moves past them."""

from collections.abc import Sequence

from drm_ingest.kafka import dead_letters
from drm_ingest.kafka.dead_letters import DeadLetter
from drm_ingest.kafka.topics import Topics
from drm_ingest.kafka.writer import Writer
from drm_ingest.postgres.dead import Dead


class Undertaker:
    """Writes dead letters of attach, and returns when Kafka has them for good."""

    def __init__(self, writer: Writer, topics: Topics) -> None:
        self._writer = writer
        self._topics = topics

    async def __call__(self, dead: Sequence[Dead]) -> None:
        """Write all; raises NotAcknowledged."""
        letters = (DeadLetter(letter.record, "attach", letter.code, letter.detail) for letter in dead)
        await self._writer.write(dead_letters.outgoing(self._writer, self._topics, letter) for letter in letters)
