"""How far each claimed partition has been read; what arrives must follow on from there, offset by offset."""

from collections.abc import Iterable, Mapping

import structlog
from aiokafka import ConsumerRecord, TopicPartition

from drm_ingest.postgres.store.positions import UNTOUCHED, Move

log = structlog.get_logger(__name__)


class OutOfStep(Exception):
    """Kafka's records do not go on from where we stand: claim and seek again, or events would be lost."""


class Followed:
    """The partitions that are claimed, each with the offset that must come next."""

    def __init__(self) -> None:
        self._next: dict[TopicPartition, int] = {}
        self._gaps: set[tuple[TopicPartition, int, int]] = set()

    @property
    def partitions(self) -> frozenset[TopicPartition]:
        return frozenset(self._next)

    def claim(self, positions: Mapping[TopicPartition, int]) -> None:
        """Follow these too, from there (`UNTOUCHED`: from wherever they begin)."""
        self._next.update(positions)

    def leave(self, partitions: Iterable[TopicPartition]) -> None:
        """Follow these no more."""
        for partition in partitions:
            self._next.pop(partition, None)

    def follow(
        self, batches: Mapping[TopicPartition, list[ConsumerRecord]]
    ) -> tuple[dict[TopicPartition, Move], list[ConsumerRecord]]:
        """Return how far what arrived moves each partition, and the records that do; the rest is stored already.

        Raises:
            OutOfStep: nothing of it counts.
        """
        moves: dict[TopicPartition, Move] = {}
        follows: list[ConsumerRecord] = []
        for partition, arrived in batches.items():
            due = self._next.get(partition)
            if due is None:  # given to us while Postgres was away
                raise OutOfStep(f"{partition.topic}/{partition.partition}: not claimed yet")
            records = arrived if due <= arrived[0].offset else [record for record in arrived if record.offset >= due]
            if not records:
                continue
            first = records[0].offset
            if UNTOUCHED < due < first and not self._is_known_gap(partition, due, first):
                raise OutOfStep(f"{partition.topic}/{partition.partition}: {first} came where {due} was due")
            moves[partition] = Move(due, records[-1].offset + 1)
            follows += records
        self._next |= {partition: move.next_offset for partition, move in moves.items()}
        return moves, follows

    def _is_known_gap(self, partition: TopicPartition, due: int, first: int) -> bool:
        """Return whether Kafka has told the same before, and been asked again: those offsets are not in the topic."""
        gap = (partition, due, first)
        if gap not in self._gaps:
            self._gaps.add(gap)
            return False
        self._gaps.remove(gap)
        log.error("offsets are missing in Kafka", topic=partition.topic, partition=partition.partition, due=due,
                  came=first)  # fmt: skip
        return True
